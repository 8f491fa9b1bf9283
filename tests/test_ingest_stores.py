"""Collections, manifests and stored media in an S3 store, also one that is slow and fails."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from polytrain.data import manifest, storage
from polytrain.data.examples import examples_of
from polytrain.data.manifest import ManifestError
from polytrain.ingest import prepare_command

pytestmark = pytest.mark.usefixtures("quick_tries")


@pytest.fixture
def bucket(s3):
    """Ten images of two classes in ROOT/<class>/, one with a name that has to be quoted."""
    bucket, rng = s3.bucket(), np.random.default_rng(0)
    for index in range(10):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(out, "JPEG")
        name = "100% ä?.jpg" if index == 4 else f"{index}.jpg"
        storage.write_bytes(storage.join(bucket, "photos", "red" if index % 2 else "dark blue", name), out.getvalue())
    return bucket


def places(m, split="train"):
    examples = examples_of(m)[split]
    return [examples.location(index) for index in range(len(examples))]


def prepare(root, out, *more):
    words = ("folder", "--modality", "image", "--root", root, "--out", out, *more)
    return prepare_command("", [str(word) for word in words])


def test_a_manifest_in_a_store_leads_to_the_media_there(bucket):
    assert prepare(f"{bucket}/photos", bucket) == 0
    m = manifest.read(f"{bucket}/manifest.parquet")
    assert m.classes == ("dark blue", "red")
    assert sum(m.sizes.values()) == 10
    assert "photos/dark blue/100% ä?.jpg" in m.table["path"].to_pylist()
    for split in ("train", "val", "test"):
        examples = examples_of(m)[split]
        assert all(examples.content(index).startswith(b"\xff\xd8") for index in range(len(examples)))


def test_a_manifest_here_leads_to_media_in_a_store(bucket, tmp_path):
    assert prepare(f"{bucket}/photos", tmp_path) == 0
    place = places(manifest.read(tmp_path / "manifest.parquet"))[0]
    assert place.startswith(f"{bucket}/photos/")
    assert storage.fetch(place).startswith(b"\xff\xd8")


def test_small_media_are_stored_in_a_store(bucket):
    assert prepare(f"{bucket}/photos", f"{bucket}/small", "--short-side", 20) == 0
    m = manifest.read(f"{bucket}/small/manifest.parquet")
    assert all(place.startswith(f"{bucket}/small/media/") for place in places(m))
    assert Image.open(io.BytesIO(storage.fetch(places(m)[0]))).size == (30, 20)
    left = {path.partition("/")[0] for path, _ in storage.files(f"{bucket}/small")}
    assert left == {"manifest.parquet", "media"}


def test_what_is_stored_already_is_not_written_again(bucket, proxy):
    prepare(f"{bucket}/photos", f"{bucket}/small", "--short-side", 20)
    assert prepare(f"{bucket}/photos", f"{bucket}/small{proxy.query}", "--short-side", 20) == 0
    assert not [request for request in proxy.requests if request.startswith("PUT") and "/media/" in request]


def test_media_here_cannot_be_named_by_a_manifest_in_a_store(bucket, tmp_path, capsys):
    for index in range(3):
        (tmp_path / "x").mkdir(exist_ok=True)
        Image.new("RGB", (30, 20 + index)).save(tmp_path / "x" / f"{index}.png")
    assert prepare(tmp_path, f"{bucket}/out") == 2
    assert "lies on this machine" in capsys.readouterr().err
    assert prepare(tmp_path, f"{bucket}/out", "--inline") == 0
    assert manifest.read(f"{bucket}/out/manifest.parquet").table["data"].null_count == 0


def test_a_store_that_fails_now_and_then_changes_nothing(bucket, proxy):
    proxy.faults = [503, None, "drop", 0.3, None, None, "cut", 503, None, None, 500, "drop"] * 3
    assert prepare(f"{bucket}/photos{proxy.query}", f"{bucket}/out{proxy.query}", "--inline") == 0
    assert len(manifest.read(f"{bucket}/out/manifest.parquet").table) == 10


@pytest.fixture
def shown_often(monkeypatch):
    """Progress is shown twenty times a second, in a log too."""
    monkeypatch.setattr("polytrain.progress.PLAIN_EVERY_S", 0.05)
    monkeypatch.setattr("polytrain.progress.LOOKS_EVERY_S", 0.02)


def test_a_slow_listing_is_seen_to_go_on(bucket, proxy, tmp_path, shown_often, capsys):
    proxy.faults = [None, None, 1.0]  # two looks at the root, then its listing
    assert prepare(f"{bucket}/photos{proxy.query}", tmp_path / "out") == 0
    assert "looking for files: 0 files, 0:00 so far" in capsys.readouterr().err


def test_a_tables_slow_store_is_seen_to_answer(bucket, proxy, tmp_path, shown_often, capsys):
    (tmp_path / "t.csv").write_text("path,label\nred/1.jpg,b\nred/3.jpg,b\nred/5.jpg,b\n")
    proxy.faults = [None, None, 1.0]  # two looks at the root, then its listing
    words = ["csv", "--modality", "image", "--table", f"{tmp_path}/t.csv", "--root", f"{bucket}/photos{proxy.query}"]
    assert prepare_command("", [*words, "--out", str(tmp_path / "out")]) == 0
    assert "looking for the table's files: 0/3 files" in capsys.readouterr().err


def test_media_are_counted_as_they_are_written_into_the_manifest(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("polytrain.progress.PLAIN_EVERY_S", 0.0)
    monkeypatch.setattr("polytrain.progress.LOOKS_EVERY_S", 0.005)
    monkeypatch.setattr("polytrain.ingest.preparing.PIECE_ROWS", 1)
    written = manifest.write

    def slowly(*args, data, **about):
        written(*args, data=(time.sleep(0.05) or piece for piece in data), **about)

    monkeypatch.setattr(manifest, "write", slowly)
    assert prepare(f"{bucket}/photos", tmp_path / "out", "--inline") == 0
    assert "writing the manifest: 5/10 examples" in capsys.readouterr().err


def test_a_store_that_keeps_failing_is_named(bucket, proxy, capsys, tmp_path):
    proxy.faults = [503] * 1000
    assert prepare(f"{bucket}/photos{proxy.query}", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert f"{bucket}/photos" in error
    assert "failed after 5 tries" in error
    assert not (tmp_path / "out").exists()


def test_a_manifest_out_of_reach_is_named(bucket, proxy):
    prepare(f"{bucket}/photos", bucket)
    proxy.faults = [503] * 1000
    with pytest.raises(ManifestError, match=r"manifest.parquet: failed after 5 tries in .*503"):
        manifest.read(f"{bucket}/manifest.parquet{proxy.query}")


def test_no_such_folder_in_a_store_is_told(bucket, tmp_path, capsys):
    assert prepare(f"{bucket}/nothing", tmp_path / "out") == 2
    assert f"{bucket}/nothing: there is no such folder" in capsys.readouterr().err


def test_the_same_file_in_train_and_test_is_refused_in_a_store(s3, tmp_path, capsys):
    bucket = s3.bucket()
    for place in ("train/x/a.png", "test/x/b.png"):
        out = io.BytesIO()
        Image.new("RGB", (9, 9), "red").save(out, "PNG")
        storage.write_bytes(f"{bucket}/{place}", out.getvalue())
    assert prepare(bucket, tmp_path / "out") == 2
    assert f"{bucket}/test/x/b.png (test) is the same file as {bucket}/train/x/a.png" in capsys.readouterr().err


def test_a_table_in_a_store_names_files_there(bucket, tmp_path, capsys):
    rows = "path,label\ndark blue/0.jpg,a\nred/1.jpg,b\nred/3.jpg,b\n"
    storage.write_bytes(f"{bucket}/t.csv", rows.encode())
    words = ["csv", "--modality", "image", "--table", f"{bucket}/t.csv", "--root", f"{bucket}/photos"]
    assert prepare_command("", [*words, "--out", f"{bucket}/out"]) == 0
    m = manifest.read(f"{bucket}/out/manifest.parquet")
    assert m.task == "t"
    assert places(m)[0] == f"{bucket}/photos/dark%20blue/0.jpg"
    storage.write_bytes(f"{bucket}/t.csv", (rows + "red/77.jpg,b\n").encode())
    assert prepare_command("", [*words, "--out", f"{bucket}/out"]) == 2
    assert "line 5: there is no file" in capsys.readouterr().err


def test_a_manifest_in_a_store_has_its_sheet(bucket, tmp_path, capsys):
    prepare(f"{bucket}/photos", bucket)
    words = ["preview", f"{bucket}/manifest.parquet", "--examples", "4", "--out", str(tmp_path / "sheet.png")]
    assert prepare_command("", words) == 0
    assert "4 examples decoded" in capsys.readouterr().err
    assert Image.open(tmp_path / "sheet.png").width > 100


def test_a_manifest_in_a_store_has_its_statistics(bucket, capsys):
    prepare(f"{bucket}/photos", bucket)
    assert prepare_command("", ["stats", f"{bucket}/manifest.parquet"]) == 0
    assert "6 of 6 training examples; red, green, blue in [-1, 1]: mean" in capsys.readouterr().out


def test_a_recipe_names_a_manifest_in_a_store(bucket, recipe_file, tmp_path):
    from polytrain.experiment import open_experiment
    from polytrain.recipe_file import load

    prepare(f"{bucket}/photos", bucket)
    task = {"modality": "image", "manifest": f"{bucket}/manifest.parquet", "steps": 3, "lr": 0.1, "batch_size": 4}
    tree = {
        "name": "stores",
        "model": {"depth": 1, "width": 16, "heads": 2, "mlp_width": 32, "adaptor_layers": 0},
        "modalities": {"image": {"size": [16, 16], "patch": [8, 8]}},
        "tasks": {"photos": task},
        "output": str(tmp_path / "runs"),
    }
    experiment, _ = open_experiment(load(recipe_file(tree), []))
    assert experiment.tasks[0].manifest == f"{bucket}/manifest.parquet"
    assert experiment.plan.tasks[0].sizes["train"] == 6


def test_media_out_of_reach_name_the_uri_and_the_tries(bucket, proxy):
    prepare(f"{bucket}/photos", bucket)
    examples = examples_of(manifest.read(f"{bucket}/manifest.parquet{proxy.query}"))["train"]
    proxy.faults = [503, 503]
    assert examples.content(0).startswith(b"\xff\xd8")
    proxy.faults = [503] * 1000
    with pytest.raises(OSError, match=rf"{bucket}/photos/.*: failed after 5 tries in .*503"):
        examples.content(0)
