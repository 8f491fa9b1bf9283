"""`jobs/prepare.py pack`: the same examples as before, in shards; resumed, never half there, what is bad listed."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polytrain.data import manifest, storage
from polytrain.data.examples import examples_of
from polytrain.data.manifest import ManifestError
from polytrain.data.reading import StreamSource, TaskMedia, read_chunk
from polytrain.experiment import all_splits, open_experiment
from polytrain.ingest import prepare_command
from polytrain.packing import Layout, pack
from polytrain.recipe import check

SMALL = Layout(shard_bytes=8_000, group_bytes=2_000)


@pytest.fixture
def packed(media, tmp_path):
    return manifest.read(pack(str(media["image"]), str(tmp_path / "packed"), SMALL)[0])


def contents(read: manifest.Manifest) -> dict[str, dict[str, tuple]]:
    """What each split holds: name -> bytes, classes, clip."""
    found = {}
    for split, examples in examples_of(read).items():
        held = found[split] = {}
        for example in range(len(examples)):
            content = examples.content(example)
            content = Path(content).read_bytes() if isinstance(content, str) else content
            name = Path(examples.name(example)).name
            held[name] = content, examples.labels([example]), examples.clip(example)
        examples.close()
    return found


@pytest.mark.parametrize("modality", ["image", "audio", "several"])
def test_every_example_is_packed_with_its_bytes_classes_and_split(media, tmp_path, modality):
    path, bad = pack(str(media[modality]), str(tmp_path / "packed"), SMALL)
    assert bad == []
    assert contents(manifest.read(path)) == contents(manifest.read(media[modality]))


def test_clips_stay_with_their_files(media, tmp_path):
    read = manifest.read(media["audio"])
    table = read.table.append_column("start_s", pa.array(np.arange(len(read.table)) / 1000))
    place = media["audio"].parent / "clips.parquet"
    manifest.write(place, task="t", modality="audio", classes=read.classes, table=table)
    path, _ = pack(str(place), str(tmp_path / "packed"), SMALL)
    assert contents(manifest.read(path)) == contents(manifest.read(place))


def test_row_groups_and_shards_have_about_the_size_that_was_asked_for(packed, tmp_path):
    sizes = []
    for shard in (tmp_path / "packed").glob("train-*.parquet"):
        table = pq.ParquetFile(shard)
        for group in range(table.num_row_groups):
            sizes.append(sum(len(v.as_py()) for v in table.read_row_group(group)["data"]))
    assert len(list((tmp_path / "packed").glob("train-*.parquet"))) == 3
    assert all(2_000 <= size < 4_000 for size in sizes[:-1])


def test_a_shard_is_a_manifest_too(packed, tmp_path):
    shard = manifest.read(tmp_path / "packed" / "train-00000.parquet")
    assert shard.classes == packed.classes
    assert shard.split("train")["data"].null_count == 0


def test_training_examples_are_stored_in_random_order_and_the_others_in_the_manifests(packed, media):
    before = manifest.read(media["image"])
    stored = packed.split("train")["path"].to_pylist()
    assert stored != before.split("train")["path"].to_pylist()
    assert packed.split("test")["path"] == before.split("test")["path"]


def test_the_manifests_order_is_kept_on_demand(media, tmp_path):
    path, _ = pack(str(media["image"]), str(tmp_path / "packed"), Layout(shuffled=False))
    assert manifest.read(path).split("train")["path"] == manifest.read(media["image"]).split("train")["path"]


def test_an_interrupted_pack_goes_on_behind_its_last_shard_and_ends_the_same(media, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    path, _ = pack(str(media["image"]), str(whole), SMALL)
    pack(str(media["image"]), str(parts), SMALL)
    (parts / "manifest.parquet").unlink()
    (parts / "train-00002.parquet").unlink()
    kept = (parts / "train-00001.parquet").stat().st_mtime_ns
    resumed, _ = pack(str(media["image"]), str(parts), SMALL)
    assert (parts / "train-00001.parquet").stat().st_mtime_ns == kept
    assert manifest.read(resumed).digest == manifest.read(path).digest


def test_two_commands_do_not_pack_into_the_same_folder_at_once(media, tmp_path):
    with (
        storage.alone_in(str(tmp_path), ValueError()),
        pytest.raises(ManifestError, match="another command is packing"),
    ):
        pack(str(media["image"]), str(tmp_path), SMALL)
    pack(str(media["image"]), str(tmp_path), SMALL)


def test_a_packed_collection_is_left_as_it_is(packed, media, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "packed").iterdir()}
    pack(str(media["image"]), str(tmp_path / "packed"), SMALL)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "packed").iterdir()} == before


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_with_another_collection_is_refused(packed, media, tmp_path, finished):
    if not finished:
        (tmp_path / "packed" / "manifest.parquet").unlink()
    with pytest.raises(ManifestError, match="--out another folder"):
        pack(str(media["audio"]), str(tmp_path / "packed"), SMALL)


@pytest.fixture
def some_bad(media, tmp_path):
    """A manifest of whose eight training files one is missing and one empty."""
    folder = tmp_path / "bad"
    folder.mkdir()
    read = manifest.read(media["image"])
    table = read.split("train").slice(0, 8)
    for path in table["path"].to_pylist()[2:]:
        (folder / path).write_bytes((media["image"].parent / path).read_bytes())
    (folder / table["path"][1].as_py()).touch()
    place = folder / "manifest.parquet"
    manifest.write(place, task="t", modality="image", classes=read.classes, table=table)
    return place


def test_what_cannot_be_read_is_left_out_and_listed(some_bad, tmp_path):
    path, bad = pack(str(some_bad), str(tmp_path / "packed"), SMALL)
    assert sorted((Path(name).name, reason) for _, name, reason in bad) == [
        ("train_000.png", "no such file"), ("train_001.png", "empty file"),
    ]  # fmt: skip
    assert manifest.read(path).sizes["train"] == 6
    rows = list(csv.reader((tmp_path / "packed" / "unreadable.csv").open()))
    assert rows == [["split", "path", "reason"], *bad]


def test_where_nothing_can_be_read_nothing_is_left(some_bad, tmp_path):
    for path in some_bad.parent.glob("*.png"):
        path.unlink()
    with pytest.raises(ManifestError, match="none of its training media"):
        pack(str(some_bad), str(tmp_path / "packed"), SMALL)
    assert list((tmp_path / "packed").iterdir()) == []


def test_many_clips_of_few_files_are_refused(media, tmp_path):
    read = manifest.read(media["video"])
    table = pa.concat_tables([read.table.slice(0, 1)] * 9)
    place = media["video"].parent / "clips.parquet"
    manifest.write(place, task="t", modality="video", classes=read.classes, table=table)
    with pytest.raises(ManifestError, match="9 examples are clips of 1 files"):
        pack(str(place), str(tmp_path / "packed"), SMALL)


def test_a_run_reads_a_packed_collection_as_it_reads_files(tiny, packed, media):
    tiny["tasks"]["colours"]["manifest"] = packed.uri
    tiny["data"] = {"shuffle_window": 3}
    experiment, manifests = open_experiment(check(tiny))
    assert experiment.plan.tasks[0].groups.window == 3
    of_tasks = tuple(
        TaskMedia(experiment.architecture.modalities[task.modality], all_splits(read))
        for task, read in zip(experiment.tasks, manifests, strict=True)
    )
    source = StreamSource(experiment.plan, of_tasks, 30.0)
    step = next(step for step in range(20) if experiment.plan.train(step).tag.task == 0)
    minibatch = experiment.plan.train(step)
    piece = read_chunk(source, minibatch, np.arange(len(minibatch)), 0)
    files = examples_of(manifest.read(media["image"]))["train"]
    names = [Path(files.name(example)).name for example in range(len(files))]
    examples = of_tasks[0].splits["train"]
    same = [names.index(examples.name(int(example))) for example in minibatch.ids]
    assert piece.ids == minibatch.ids.tolist()
    assert piece.labels == files.labels(same)
    geometry = of_tasks[0].geometry
    from polytrain.data.decode import decode

    expected = np.concatenate([decode(geometry, files.content(example)) for example in same])
    assert np.array_equal(piece.media, expected)
    examples.close()


def test_a_lost_shard_is_told_before_the_start(tiny, packed, tmp_path):
    from polytrain.recipe import RecipeError

    tiny["tasks"]["colours"]["manifest"] = packed.uri
    for shard in (tmp_path / "packed").glob("train-*.parquet"):
        shard.unlink()
    with pytest.raises(RecipeError, match="train-00000.parquet"):
        open_experiment(check(tiny))


def test_the_command_says_what_it_packed_and_what_it_left_out(some_bad, tmp_path, capsys):
    out = tmp_path / "packed"
    assert prepare_command("", ["pack", str(some_bad), "--out", str(out), "--group-size", "2kB"]) == 0
    told = capsys.readouterr().out
    assert "train 6" in told
    assert "2 files could not be read" in told
    assert str(out / "manifest.parquet") in told


def test_the_command_has_help_and_refuses_nonsense(media, tmp_path):
    command = [sys.executable, Path(__file__).parents[1] / "jobs" / "prepare.py", "pack"]
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "--shard-size" in helped.stdout
    wrong = subprocess.run(
        [*command, media["image"], "--out", tmp_path, "--group-size", "big"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode == 2
    assert "'big' is no size" in wrong.stderr


def test_another_window_is_another_run_and_the_default_keeps_old_names(tiny):
    plain, wide = check(tiny), check(tiny | {"data": {"shuffle_window": 64}})
    assert plain.digest == check(tiny | {"data": {"shuffle_window": 32}}).digest
    assert plain.digest != wide.digest
