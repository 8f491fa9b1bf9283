import os
import shutil

import pytest
from PIL import Image

from polytrain.data import manifest
from polytrain.ingest import prepare_command
from polytrain.ingest.copies import copies


def picture(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 8), (number, 7, 200 - number)).save(path)
    return path


def collection(root, splits=("train", "test"), count=6):
    for number, split in enumerate(splits):
        for index in range(count):
            picture(root / split / "red" / f"{index}.png", 30 * number + index)
    return root


def prepare(root, out, *more):
    words = ("folder", "--modality", "image", "--root", root, "--out", out, *more)
    return prepare_command("", [str(word) for word in words])


@pytest.mark.parametrize("link", [shutil.copy, os.link, os.symlink])
def test_a_file_of_train_that_is_in_test_is_named_and_refused(tmp_path, capsys, link):
    root = collection(tmp_path / "c")
    (root / "test/red/0.png").unlink()
    link(root / "train/red/4.png", root / "test/red/0.png")
    assert prepare(root, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert f"{root}/test/red/0.png (test) is the same file as {root}/train/red/4.png (train)" in error
    assert not (tmp_path / "out").exists()


def test_overlap_skip_takes_it_out_of_train(tmp_path, capsys):
    root = collection(tmp_path / "c")
    shutil.copy(root / "train/red/4.png", root / "test/red/9.png")
    assert prepare(root, tmp_path / "out", "--overlap", "skip", "--val-fraction", 0) == 0
    assert manifest.read(tmp_path / "out/manifest.parquet").sizes == {"train": 5, "val": 0, "test": 7}
    assert "left 1 training files out" in capsys.readouterr().out


def test_overlap_ignore_does_not_look(tmp_path):
    root = collection(tmp_path / "c")
    shutil.copy(root / "train/red/4.png", root / "test/red/9.png")
    assert prepare(root, tmp_path / "out", "--overlap", "ignore") == 0


def test_copies_are_never_split_apart(tmp_path, capsys):
    for index in range(40):
        path = picture(tmp_path / "c" / "red" / f"{index}.png", index)
        shutil.copy(path, path.with_name(f"again-{index}.png"))
    assert prepare(tmp_path / "c", tmp_path / "out") == 0
    m = manifest.read(tmp_path / "out/manifest.parquet")
    split = dict(zip((os.path.basename(p) for p in m.table["path"].to_pylist()), m.table["split"].to_pylist()))
    assert m.sizes == {"train": 64, "val": 8, "test": 8}
    assert all(split[f"{i}.png"] == split[f"again-{i}.png"] for i in range(40))
    assert "40 files are copies of others, all kept in one split" in capsys.readouterr().out


def test_files_of_one_size_and_the_same_ends_differ_in_the_middle(tmp_path):
    ends = bytes(20_000)
    names = [str(tmp_path / name) for name in "abc"]
    for name, middle in zip(names, (b"x", b"y", b"x")):
        with open(name, "wb") as file:
            file.write(ends + middle + ends)
    assert copies(names) == {names[2]: names[0]}


def test_empty_files_are_nobodys_copies(tmp_path):
    for name in "ab":
        (tmp_path / name).touch()
    assert copies([str(tmp_path / name) for name in "ab"]) == {}


def test_a_row_of_a_table_in_train_and_test_is_refused(tmp_path, capsys):
    picture(tmp_path / "m/a.png", 1)
    picture(tmp_path / "m/b.png", 2)
    shutil.copy(tmp_path / "m/a.png", tmp_path / "m/c.png")
    (tmp_path / "t.csv").write_text("path,label,split\na.png,x,train\nb.png,x,train\nc.png,x,test\n")
    words = [
        "csv",
        "--modality",
        "image",
        "--table",
        tmp_path / "t.csv",
        "--root",
        tmp_path / "m",
        "--out",
        tmp_path / "o",
    ]
    assert prepare_command("", [str(word) for word in words]) == 2
    assert "c.png (test) is the same file as" in capsys.readouterr().err


def test_a_link_that_leads_in_a_circle_ends(tmp_path):
    root = collection(tmp_path / "c", ("train",))
    os.symlink(root / "train", root / "train" / "red" / "again")
    assert prepare(root, tmp_path / "out") == 0
    assert sum(manifest.read(tmp_path / "out/manifest.parquet").sizes.values()) == 6


def test_a_split_that_is_a_link_to_another_is_refused(tmp_path, capsys):
    root = collection(tmp_path / "c", ("train",))
    os.symlink(root / "train", root / "val")
    assert prepare(root, tmp_path / "out") == 2
    assert "and 3 more" in capsys.readouterr().err


def test_a_root_that_is_a_file_is_refused(tmp_path, capsys):
    picture(tmp_path / "a.png", 1)
    assert prepare(tmp_path / "a.png", tmp_path / "out") == 2
    assert "a.png: is a file; --root names the one that holds train/<class>/<file>" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_named(tmp_path, capsys):
    root = collection(tmp_path / "c")
    (root / "train" / "red").chmod(0)
    assert prepare(root, tmp_path / "out") == 2
    assert "train/red: cannot be read: Permission denied" in capsys.readouterr().err
    (root / "train" / "red").chmod(0o755)
