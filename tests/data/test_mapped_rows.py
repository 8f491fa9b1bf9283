"""Large manifests are mapped from this machine's disk: the same rows, checked the same, and sent by name only."""

import pickle
import tempfile

import pyarrow as pa
import pytest

from polytrain.data import examples, manifest, mapped_rows
from polytrain.data.examples import examples_of
from polytrain.data.manifest import ManifestError


@pytest.fixture(autouse=True)
def large_is_ten_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(mapped_rows, "LARGE", 10)
    monkeypatch.setattr(mapped_rows, "BATCH", 4)
    monkeypatch.setattr(mapped_rows, "_held", {})


def written(tmp_path, rows=25, **change):
    """A manifest whose splits are scattered."""
    splits = [("train", "val", "train", "test", "train")[row % 5] for row in range(rows)]
    columns = {
        "path": [f"{row}.png" for row in range(rows)], "label": pa.array([row % 3 for row in range(rows)], pa.int32()),
        "split": splits, "start_s": [None if row % 2 else row / 10 for row in range(rows)],
    }  # fmt: skip
    path = tmp_path / "manifest.parquet"
    manifest.write(path, task="t", modality="image", classes=["a", "b", "c"], table=pa.table(columns | change))
    return path


def test_a_mapped_manifest_has_the_rows_of_a_held_one(tmp_path, monkeypatch):
    path = written(tmp_path)
    large = manifest.read(path)
    monkeypatch.setattr(mapped_rows, "LARGE", 100)
    small = manifest.read(path)
    assert large.mapped is not None
    assert small.mapped is None
    assert (large.sizes, large.digest, large.classes) == (small.sizes, small.digest, small.classes)
    for split in manifest.SPLITS:
        assert large.split(split).to_pylist() == small.split(split).to_pylist()
    assert sorted(map(str, large.table.to_pylist())) == sorted(map(str, small.table.to_pylist()))


def test_examples_of_a_mapped_manifest_are_those_of_a_held_one(tmp_path, monkeypatch):
    path = written(tmp_path)
    large = examples_of(manifest.read(path))["train"]
    monkeypatch.setattr(mapped_rows, "LARGE", 100)
    small = examples_of(manifest.read(path))["train"]
    for example in range(len(small)):
        assert large.location(example) == small.location(example)
        assert large.clip(example) == small.clip(example)
    assert large.labels(range(15)) == small.labels(range(15))


def test_a_fault_in_a_late_row_is_named_and_nothing_half_is_kept(tmp_path):
    import pyarrow.parquet as pq

    path = written(tmp_path)
    table = pq.read_table(path)
    labels = table["label"].to_pylist()
    labels[17] = 9
    pq.write_table(table.set_column(1, "label", pa.array(labels, pa.int32())), path)
    for _ in range(2):
        with pytest.raises(ManifestError, match="row 18, column 'label': 9 is outside the classes"):
            manifest.read(path)


def test_a_large_manifest_without_training_is_refused(tmp_path):
    import pyarrow.parquet as pq

    path = written(tmp_path)
    table = pq.read_table(path)
    pq.write_table(table.set_column(2, "split", pa.array(["val"] * 25)), path)
    with pytest.raises(ManifestError, match="no training example"):
        manifest.read(path)


@pytest.mark.parametrize("sent_bytes", [0, 1_000_000])
def test_sent_examples_are_the_same(tmp_path, monkeypatch, sent_bytes):
    monkeypatch.setattr(examples, "SENT_BYTES", sent_bytes)
    here = examples_of(manifest.read(written(tmp_path)))["train"]
    there = pickle.loads(pickle.dumps(here))
    assert [there.location(example) for example in range(15)] == [here.location(example) for example in range(15)]


def test_what_is_sent_of_a_large_table_does_not_grow_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "SENT_BYTES", 0)
    sizes = []
    for rows in (20, 2000):
        sizes.append(len(pickle.dumps(examples_of(manifest.read(written(tmp_path, rows)))["train"])))
    assert sizes[0] == sizes[1]


def test_a_manifest_that_changed_under_way_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "SENT_BYTES", 0)
    sent = pickle.dumps(examples_of(manifest.read(written(tmp_path)))["train"])
    written(tmp_path, rows=30)
    with pytest.raises(ManifestError, match="not what it was"):
        pickle.loads(sent)
