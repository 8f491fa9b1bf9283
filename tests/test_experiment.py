"""A recipe and its manifests, checked against each other before anything starts."""

import numpy as np
import pyarrow as pa
import pytest

from polytrain.data import manifest
from polytrain.data.augmentation import AUGMENTATIONS, augmentation
from polytrain.experiment import all_splits, open_experiment
from polytrain.recipe import RecipeError, check


def open_tiny(tree):
    return open_experiment(check(tree))


def fault(tree) -> str:
    with pytest.raises(RecipeError) as error:
        open_tiny(tree)
    return str(error.value)


def test_tasks_know_their_classes_losses_and_metrics(tiny):
    experiment, _ = open_tiny(tiny)
    assert [(t.name, len(t.classes), t.loss, t.metric) for t in experiment.tasks] == [
        ("colours", 3, "softmax", "top1"), ("moves", 3, "softmax", "top1"), ("tones", 3, "sigmoid", "mAP"),
    ]  # fmt: skip


def test_heads_start_as_in_table_6(tiny):
    experiment, _ = open_tiny(tiny)
    assert [head.init for head in experiment.architecture.tasks.values()] == ["lecun_normal", "zeros", "zeros"]


def test_a_missing_manifest_is_named_with_its_task(tiny):
    tiny["tasks"]["moves"]["manifest"] = "nowhere/manifest.parquet"
    assert "tasks.moves.manifest" in fault(tiny)


def test_the_wrong_modality_is_named(tiny, media):
    tiny["tasks"]["moves"]["manifest"] = str(media["audio"])
    assert "tasks.moves.modality: the recipe says video" in fault(tiny)


def test_a_batch_larger_than_the_task_is_named(tiny):
    tiny["tasks"]["colours"]["batch_size"] = 25
    assert "tasks.colours.batch_size: 25 is more than the 24 training examples" in fault(tiny)


def test_softmax_over_several_labels_is_refused(tiny):
    tiny["tasks"]["tones"]["loss"] = "softmax"
    assert "tasks.tones.loss: softmax needs one label an example" in fault(tiny)


def test_label_smoothing_over_several_labels_is_refused(tiny):
    tiny["tasks"]["tones"].pop("loss", None)
    tiny["tasks"]["tones"]["label_smoothing"] = 0.3
    assert "tasks.tones.label_smoothing: 0.3 would spread a label over classes that sigmoid judges" in fault(tiny)


def test_tasks_know_their_augmentation(tiny):
    tiny["tasks"]["moves"] |= {"augment": "randaugment", "augment_magnitude": 20, "label_smoothing": 0.3}
    colours, moves, _ = open_tiny(tiny)[0].tasks
    assert (moves.augmentation, moves.label_smoothing) == (augmentation("randaugment", 20), 0.3)
    assert (colours.augmentation, colours.label_smoothing) == (AUGMENTATIONS["none"], 0.0)


def test_faults_of_several_tasks_are_told_together(tiny):
    tiny["tasks"]["colours"]["batch_size"] = 25
    tiny["tasks"]["tones"]["loss"] = "softmax"
    assert len(fault(tiny).splitlines()) == 2


def test_media_that_were_moved_away_are_noticed_before_the_start(tiny, tmp_path):
    path = tmp_path / "manifest.parquet"
    table = pa.table({"path": ["gone/a.png"] * 9, "label": pa.array([0] * 9, pa.int32()), "split": ["train"] * 9})
    manifest.write(path, task="t", modality="image", classes=["a", "b"], table=table)
    tiny["tasks"]["colours"]["manifest"] = str(path)
    assert str(tmp_path / "gone" / "a.png") in fault(tiny)


def test_paths_are_located_as_the_manifest_says(tmp_path):
    path = tmp_path / "manifest.parquet"
    paths = ["a/b.png", "/abs/c.png", "s3://bucket/d.png"]
    table = pa.table({"path": paths, "label": pa.array([0] * 3, pa.int32()), "split": ["train"] * 3})
    manifest.write(path, task="t", modality="image", classes=["a", "b"], table=table)
    read = manifest.read(path)
    assert [all_splits(read)["train"].location(i) for i in range(3)] == [read.location(p) for p in paths]


def test_another_manifest_is_another_plan(tiny, media, tmp_path):
    import shutil

    one, _ = open_tiny(tiny)
    folder = tmp_path / "copy"
    shutil.copytree(media["image"].parent, folder)
    read = manifest.read(folder / "manifest.parquet")
    order = np.arange(len(read.table))[::-1]
    manifest.write(
        folder / "manifest.parquet",
        task=read.task,
        modality="image",
        classes=read.classes,
        table=read.table.take(order),
    )
    tiny["tasks"]["colours"]["manifest"] = str(folder / "manifest.parquet")
    other, _ = open_tiny(tiny)
    assert one.plan.digest != other.plan.digest
