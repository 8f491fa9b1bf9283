"""What `--short-side`, `--sample-rate` and `--inline` write; everything small, so without Ray (see end_to_end)."""

import io
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from polytrain.data import manifest, storage
from polytrain.data.decode import decode
from polytrain.ingest import prepare_command
from polytrain.modalities import Image as ImageGeometry
from small_media import make_task, write_sound


def pictures(root, count=10, size=(60, 40)):
    rng = np.random.default_rng(0)
    for name in ("x", "y"):
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(rng.integers(0, 255, (*reversed(size), 3), np.uint8)).save(root / name / f"{index}.jpg")
    return root


def prepare(root, out, *more, modality="image"):
    words = ("folder", "--modality", modality, "--root", root, "--out", out, *more)
    return prepare_command("", [str(word) for word in words])


def prepared(tmp_path, *more, **options):
    assert prepare(tmp_path / "c", tmp_path / "out", *more, **options) == 0
    return manifest.read(tmp_path / "out/manifest.parquet")


def test_short_side_stores_small_images_beside_the_manifest(tmp_path, capsys):
    pictures(tmp_path / "c")
    m = prepared(tmp_path, "--short-side", 20)
    paths = [m.location(path) for path in m.table["path"].to_pylist()]
    assert all(path.startswith(f"{tmp_path}/out/media/") for path in paths)
    assert {Image.open(path).size for path in paths} == {(30, 20)}
    assert len(set(paths)) == 20
    assert "20 files: " in capsys.readouterr().out


def test_inline_puts_files_into_the_manifest(tmp_path):
    pictures(tmp_path / "c")
    m = prepared(tmp_path, "--inline")
    assert m.table["path"].null_count == 20
    originals = {path.read_bytes() for path in (tmp_path / "c").rglob("*.jpg")}
    assert set(m.table["data"].to_pylist()) == originals
    assert not (tmp_path / "out/media").exists()


def test_inline_media_stand_in_the_row_of_their_label(tmp_path):
    pictures(tmp_path / "c")
    m = prepared(tmp_path, "--inline")
    class_of = {path.read_bytes(): path.parent.name for path in (tmp_path / "c").rglob("*.jpg")}
    rows = zip(m.table["data"].to_pylist(), m.table["label"].to_pylist())
    assert all(class_of[data] == m.classes[label] for data, label in rows)


def test_files_over_the_inline_limit_stay_where_they_are(tmp_path):
    pictures(tmp_path / "c")
    Image.effect_noise((400, 400), 90).save(tmp_path / "c/x/large.jpg")
    m = prepared(tmp_path, "--inline", 20)
    outside = [path for path in m.table["path"].to_pylist() if path]
    assert [os.path.basename(path) for path in outside] == ["large.jpg"]
    assert m.table["data"].null_count == 1


def test_smaller_and_inline_go_together(tmp_path):
    pictures(tmp_path / "c")
    m = prepared(tmp_path, "--inline", "--short-side", 20)
    assert {Image.open(io.BytesIO(data)).size for data in m.table["data"].to_pylist()} == {(30, 20)}
    decode(ImageGeometry(size=(16, 16), patch=(8, 8)), m.table["data"][3].as_py())


def test_what_cannot_be_read_is_left_out_counted_and_listed(tmp_path, capsys):
    pictures(tmp_path / "c")
    (tmp_path / "c/x/broken.jpg").write_bytes(b"no picture")
    assert sum(prepared(tmp_path, "--short-side", 20).sizes.values()) == 20
    listed = pq.read_table(tmp_path / "out/left_out.parquet").to_pylist()
    assert [(row["path"], row["split"]) for row in listed] == [(f"{tmp_path}/c/x/broken.jpg", "train")]
    assert "not an image" in listed[0]["reason"]
    assert "left out 1 files" in capsys.readouterr().out


def test_a_link_to_nowhere_is_left_out(tmp_path, capsys):
    pictures(tmp_path / "c")
    (tmp_path / "c/x/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert sum(prepared(tmp_path, "--short-side", 20).sizes.values()) == 20
    assert "gone.jpg: no such file" in capsys.readouterr().out


def test_missing_fail_refuses_what_cannot_be_read_and_writes_no_manifest(tmp_path, capsys):
    pictures(tmp_path / "c")
    (tmp_path / "c/x/broken.jpg").write_bytes(b"no picture")
    assert prepare(tmp_path / "c", tmp_path / "out", "--short-side", 20, "--missing", "fail") == 2
    assert f"{tmp_path}/c/x/broken.jpg: not an image" in capsys.readouterr().err
    assert not (tmp_path / "out/manifest.parquet").exists()


def test_finished_files_are_not_done_again_and_broken_ones_are_tried_again(tmp_path):
    pictures(tmp_path / "c")
    (tmp_path / "c/x/broken.jpg").write_bytes(b"no picture")
    prepare(tmp_path / "c", tmp_path / "out", "--short-side", 20, "--missing", "fail")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/media").rglob("*.jpg")}
    Image.new("RGB", (60, 40)).save(tmp_path / "c/x/broken.jpg")
    assert sum(prepared(tmp_path, "--short-side", 20, "--missing", "fail").sizes.values()) == 21
    assert len(before) == 20
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert sorted(os.listdir(tmp_path / "out")) == ["manifest.parquet", "media"]


def test_a_source_that_changed_is_stored_anew(tmp_path):
    pictures(tmp_path / "c")
    prepared(tmp_path, "--short-side", 20)
    Image.new("RGB", (40, 60), "red").save(tmp_path / "c/x/3.jpg")
    m = prepared(tmp_path, "--short-side", 20)
    sizes = [Image.open(m.location(path)).size for path in m.table["path"].to_pylist()]
    assert sizes.count((20, 30)) == 1


def test_sounds_become_wav_of_the_rate(tmp_path):
    for index in range(10):
        (tmp_path / "c/x").mkdir(parents=True, exist_ok=True)
        write_sound(tmp_path / f"c/x/{index}.wav", 1, np.random.default_rng(index))
    m = prepared(tmp_path, "--sample-rate", 4000, "--inline", modality="audio")
    assert all(data[:4] == b"RIFF" and len(data) == 44 + 2 * 1200 for data in m.table["data"].to_pylist())


def test_rows_of_a_table_whose_file_is_missing_can_be_left_out(tmp_path, capsys):
    make_task(tmp_path / "m", "image", sizes={"train": 3, "val": 1, "test": 1})
    (tmp_path / "t.csv").write_text("path,label\ntrain_000.png,x\ntrain_001.png,x\ngone.png,x\n")
    words = ["csv", "--modality", "image", "--table", str(tmp_path / "t.csv"), "--root", str(tmp_path / "m")]
    assert prepare_command("", [*words, "--out", str(tmp_path / "out"), "--missing", "skip"]) == 0
    assert "gone.png: is not there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("modality", "words", "told"),
    [
        ("audio", ("--short-side", 64), "--short-side is of images and videos"),
        ("image", ("--sample-rate", 16000), "--sample-rate is of sounds"),
        ("image", ("--short-side", 2), "it should be 8 to 8192"),
        ("image", ("--inline", 0), "it should be 1 to 65536"),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path, capsys, modality, words, told):
    make_task(tmp_path / "c/x", modality)
    assert prepare(tmp_path / "c", tmp_path / "out", *words, "--overlap", "ignore", modality=modality) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_out_that_is_root_is_refused(tmp_path, capsys):
    pictures(tmp_path / "c")
    assert prepare(tmp_path / "c", tmp_path / "c", "--short-side", 20) == 2
    assert "is --root as well" in capsys.readouterr().err


def test_two_commands_do_not_store_into_one_folder(tmp_path, capsys):
    pictures(tmp_path / "c")
    with storage.alone_in(str(tmp_path / "out"), ValueError()):
        assert prepare(tmp_path / "c", tmp_path / "out", "--short-side", 20) == 2
    assert "another command is preparing this folder" in capsys.readouterr().err
