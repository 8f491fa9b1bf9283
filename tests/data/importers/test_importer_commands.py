"""Every importer as the command a person types, on a miniature of its official layout."""

from functools import partial

import official_layouts as layouts
import pyarrow.parquet as pq
import pytest

from polytrain.data import manifest
from polytrain.data.importers.registry import IMPORTERS
from polytrain.ingest import prepare_command

LAYOUTS = {
    name: getattr(layouts, name)
    for name in ("cifar10", "cifar100", "imagenet", "pets", "resisc45", "audioset", "vggsound", "caltech101", "sun397",
                 "dmlab", "dtd", "kitti", "pcam", "ssv2", "moments")
} | {
    "kinetics400": layouts.kinetics,
    "kinetics600": partial(layouts.kinetics, classes=600),
    "kinetics700": partial(layouts.kinetics, classes=700),
    "kinetics400-sound": layouts.kinetics,
    "moments-sound": layouts.moments,
    "epic-verb": layouts.epic,
    "epic-noun": layouts.epic,
}  # fmt: skip


def prepare(name, tmp_path, *more):
    return prepare_command("", [name, "--root", str(tmp_path / "root"), "--out", str(tmp_path / "out"), *more])


@pytest.mark.parametrize("name", list(IMPORTERS))
def test_every_importer_is_a_command_that_writes_a_manifest(name, tmp_path, capsys):
    LAYOUTS[name](tmp_path / "root")
    assert prepare(name, tmp_path) == 0
    m = manifest.read(tmp_path / "out/manifest.parquet")
    assert m.modality in capsys.readouterr().out
    assert m.sizes["train"] > 0


@pytest.mark.parametrize("name", list(IMPORTERS))
def test_every_importer_explains_its_layout(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        prepare_command("", [name, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "Official layout" in text
    assert "--missing {skip,fail}" in text


def test_images_without_files_of_their_own_are_stored_inline(tmp_path):
    layouts.cifar10(tmp_path / "root", 2)
    assert prepare("cifar10", tmp_path, "--name", "small") == 0
    m = manifest.read(tmp_path / "out/manifest.parquet")
    assert (m.task, len(m.table), m.table["data"].null_count, m.table["path"].null_count) == ("small", 12, 0, 12)
    assert m.classes[3] == "class3"


def test_missing_files_are_listed_or_refused(tmp_path, capsys):
    layouts.moments(tmp_path / "root")
    gone = next((tmp_path / "root").rglob("*.mp4"))
    gone.unlink()
    assert prepare("moments", tmp_path) == 0
    listed = pq.read_table(tmp_path / "out/left_out.parquet").to_pylist()
    assert any(gone.stem in row["path"] and row["reason"] == "is not there" for row in listed)
    assert f"left out {len(listed)} files" in capsys.readouterr().out
    assert prepare("moments", tmp_path, "--missing", "fail") == 2


@pytest.mark.parametrize(
    ("row", "option", "sizes"),
    [("train-000003,20,sound 4,test", "--overlap", (308, 310, 310)), ("test-000003,3,sound 4,test", "--duplicates", (309, 309, 309))],
)  # fmt: skip
def test_a_list_that_is_refused_names_the_option_that_takes_it(row, option, sizes, tmp_path, capsys):
    layouts.vggsound(tmp_path / "root")
    layouts.touch(tmp_path / "root/video" / "train-000003_000020.mp4")
    with open(tmp_path / "root/vggsound.csv", "a") as file:
        file.write(f"{row}\n")
    assert prepare("vggsound", tmp_path) == 2
    assert f"{option} skip" in capsys.readouterr().err
    assert prepare("vggsound", tmp_path, option, "skip") == 0
    assert f"{option} skip" in capsys.readouterr().out
    assert tuple(manifest.read(tmp_path / "out/manifest.parquet").sizes.values()) == sizes


@pytest.mark.parametrize(
    ("part", "option", "sizes"), [("test", "--overlap", (97, 2, 7)), ("train", "--duplicates", (98, 2, 6))]
)
def test_dmlabs_records_are_judged_by_their_names(part, option, sizes, tmp_path, capsys):
    layouts.dmlab(tmp_path / "root")
    shard = tmp_path / "root" / f"dmlab-{part}.tfrecord-00001-of-00002"
    shard.write_bytes(shard.read_bytes() + layouts.tfrecord({"image": b"x", "filename": b"train7", "label": 1}))
    assert prepare("dmlab", tmp_path) == 2
    assert f"{option} skip" in capsys.readouterr().err
    assert prepare("dmlab", tmp_path, option, "skip") == 0
    assert tuple(manifest.read(tmp_path / "out/manifest.parquet").sizes.values()) == sizes


def test_a_root_of_another_dataset_is_refused(tmp_path, capsys):
    layouts.dtd(tmp_path / "root")
    assert prepare("kinetics400", tmp_path) == 2
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
