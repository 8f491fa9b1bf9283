import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polytrain.data import manifest
from polytrain.data.manifest import ManifestError

META = {"task": "pets", "modality": "image", "classes": '["cat", "dog"]', "format_version": "1"}


def columns(**more):
    base = {"path": ["a.png", "b.png", "c.png"], "label": pa.array([0, 1, 1], pa.int32()),
            "split": ["train", "val", "train"]}  # fmt: skip
    return {name: column for name, column in (base | more).items() if column is not None}


def file(tmp_path, meta=(), **more):
    table = pa.table(columns(**more))
    metadata = {f"polytrain.{key}": value for key, value in (META | dict(meta)).items() if value is not None}
    path = tmp_path / "manifest.parquet"
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return str(path)


def lists(*rows):
    return pa.array(rows, pa.list_(pa.int32()))


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "manifest.parquet"
    manifest.write(path, task="pets", modality="image", classes=["cat", "dog"], table=pa.table(columns()))
    m = manifest.read(path)
    assert (m.task, m.modality, m.classes, m.multi_label) == ("pets", "image", ("cat", "dog"), False)
    assert m.sizes == {"train": 2, "val": 1, "test": 0}
    assert m.split("train")["path"].to_pylist() == ["a.png", "c.png"]
    assert m.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_wrong_table_is_not_written(tmp_path):
    table = pa.table(columns(split=["val"] * 3))
    with pytest.raises(ManifestError, match="no training example"):
        manifest.write(tmp_path / "m.parquet", task="p", modality="image", classes=["cat", "dog"], table=table)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_list_of_labels_is_allowed(tmp_path):
    assert manifest.read(file(tmp_path, label=None, labels=lists([0, 1], [], [1]))).multi_label


def test_relative_paths_start_at_the_manifest(tmp_path):
    m = manifest.read(file(tmp_path))
    assert m.location("x/a.png") == str(tmp_path / "x/a.png")
    assert m.location("/a.png") == "/a.png"
    assert m.location("s3://bucket/a.png") == "s3://bucket/a.png"


def test_a_file_uri_is_read(tmp_path):
    m = manifest.read("file://" + file(tmp_path))
    assert m.location("../a b.png") == str(tmp_path.parent / "a b.png")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"path": None}, "no column 'path'"),
        ({"split": None}, "no column 'split'"),
        ({"label": None}, "neither column"),
        ({"labels": lists([0], [1], [1])}, "both columns"),
        ({"label": pa.array([0, 1, 1], pa.int64())}, "'label' is of type int64; it should be int32"),
        ({"label": pa.array([0, 2, 1], pa.int32())}, "row 2, column 'label': 2 is outside the classes"),
        ({"label": pa.array([0, 1, -1], pa.int32())}, "row 3, column 'label': -1"),
        ({"label": pa.array([0, None, 1], pa.int32())}, "row 2, column 'label': None"),
        ({"label": None, "labels": lists([], [0], [1, 7])}, "row 3, column 'labels'"),
        ({"label": None, "labels": lists([0], None, [1])}, "row 2, column 'labels'"),
        ({"split": ["train", "test", "dev"]}, "row 3, column 'split': 'dev'"),
        ({"path": ["a.png", None, "c.png"]}, "row 2, column 'path'"),
        ({"start_s": [0.0, 1.0, 2.0], "end_s": [1.0, 1.0, 3.0]}, "row 2, column 'end_s'"),
        ({"start_s": [0.0, -1.0, None]}, "row 2, column 'start_s'"),
        ({"start_s": [0.0, np.nan, None]}, "row 2, column 'start_s'"),
        ({"meta": {"modality": "smell"}}, "modality 'smell' is unknown"),
        ({"meta": {"classes": '["cat", "cat"]'}}, "'cat' twice"),
        ({"meta": {"format_version": None}}, "no polytrain.format_version"),
        ({"meta": {"format_version": "9"}}, "format_version is '9'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, told):
    path = file(tmp_path, **change)
    with pytest.raises(ManifestError) as error:
        manifest.read(path)
    assert told in str(error.value)
    assert path in str(error.value)


def test_data_may_stand_for_a_path(tmp_path):
    data = pa.array([None, b"png", None], pa.binary())
    assert manifest.read(file(tmp_path, path=["a.png", None, "c.png"], data=data)).sizes["val"] == 1


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ManifestError, match="no such file"):
        manifest.read(tmp_path / "nope.parquet")


def test_another_kind_of_file_is_told(tmp_path):
    (tmp_path / "m.parquet").write_text("path,label\n")
    with pytest.raises(ManifestError, match="not a whole Parquet file"):
        manifest.read(tmp_path / "m.parquet")
