"""What an evaluation judges: parts that fit the checkpoint, and what is told of those that don't."""

from __future__ import annotations

import json
import shutil

import pyarrow.parquet as pq
import pytest
import yaml

from polytrain.data import manifest as manifests
from polytrain.evaluate.parts import Asked, open_question
from polytrain.recipe import RecipeError
from small_media import make_task


@pytest.fixture
def ask(checkpoint_of_three):
    """Opens a question about the checkpoint of three modalities, or about `of`."""

    def open_(*overrides, of=checkpoint_of_three, **more):
        return open_question(Asked(str(of), overrides=overrides, **more))

    return open_


def rewritten(media, folder, change):
    """A copy of the images with another manifest: `change` is given table and class names and returns them anew."""
    shutil.copytree(media["image"].parent, folder)
    path = folder / "manifest.parquet"
    read = manifests.read(str(path))
    table, classes = change(pq.read_table(path), list(read.classes))
    manifests.write(path, task="colours", modality="image", classes=classes, table=table)
    return path


def test_all_tasks_of_val_and_test_are_judged(ask):
    question = ask()
    assert [part.key for part in question.parts] == [
        f"{split}/{task}" for split in ("val", "test") for task in ("colours", "moves", "tones", "hues", "pitches")
    ]
    assert question.notices == ()


def test_the_tests_files_have_the_tasks_names(ask):
    assert [part.file_name for part in ask(tasks=("moves",)).parts] == ["moves.val", "moves"]


def test_views_are_those_of_the_recipe_or_those_asked_for(ask):
    assert {len(part.views) for part in ask().parts} == {1}
    counts = {part.task.modality: len(part.views) for part in ask("eval.views=paper").parts}
    assert counts == {"image": 1, "video": 12, "audio": 4}


def test_the_same_question_has_one_name_and_another_another(ask):
    name = ask().name
    assert ask().name == name
    assert ask("train.workers=2").name == name
    assert len({name, ask("eval.views=paper").name, ask(splits=("test",)).name, ask(tasks=("moves",)).name}) == 4


def test_classes_in_another_order_are_matched_by_name(ask, media, tmp_path):
    path = rewritten(media, tmp_path / "other", lambda table, classes: (table, classes[::-1]))
    question = ask(f"tasks.colours.manifest={path}", tasks=("colours",), splits=("test",))
    (part,) = question.parts
    assert part.classes_of([[0], [1, 2]]) == [[2], [1, 0]]
    assert "is not the manifest that it was trained by" in question.notices[0]


def test_a_class_that_the_model_does_not_know_is_told(ask, media, tmp_path):
    path = rewritten(media, tmp_path / "other", lambda table, classes: (table, ["one", "too", "three"]))
    with pytest.raises(RecipeError, match=r"tasks.colours: .* does not know, the first 'too'; it knows one, two"):
        ask(f"tasks.colours.manifest={path}")


def test_a_manifest_with_less_to_train_on_than_a_minibatch_is_judged(ask, tmp_path):
    path = make_task(tmp_path / "only", "image", sizes={"train": 1, "test": 5})
    question = ask(f"tasks.colours.manifest={path}", tasks=("colours",))
    assert [(part.key, len(part.examples)) for part in question.parts] == [("test/colours", 5)]
    assert any("has no val examples" in notice for notice in question.notices)


def test_no_examples_at_all_are_told(ask, tmp_path):
    path = make_task(tmp_path / "only", "image", sizes={"train": 1, "test": 5})
    with pytest.raises(RecipeError, match="splits: there is no example in val of colours"):
        ask(f"tasks.colours.manifest={path}", tasks=("colours",), splits=("val",))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("tasks.colours.manifest={video}", "is of modality video, the checkpoint's colours is of image"),
        ("tasks.pitches.manifest={several}", "has several labels an example, the checkpoint's pitches has one label"),
        ("tasks.moves.modality=image", "recipe's moves is of modality image, the checkpoint's moves is of video"),
        ("modalities.audio.mean=-5", "modalities.audio: the checkpoint was trained with"),
        ("tasks.colours.manifest=gone.parquet", "gone.parquet"),
    ],
)
def test_what_does_not_fit_the_checkpoint_is_told(ask, media, override, told):
    with pytest.raises(RecipeError, match=told):
        ask(override.format(**media))


def recipe_with(checkpoint, tmp_path, change) -> str:
    tree = yaml.safe_load((checkpoint / "recipe.yaml").read_text())
    change(tree)
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(tree))
    return str(tmp_path / "other.yaml")


def test_another_recipe_may_leave_out_the_geometry_and_name_other_tasks(checkpoint_of_three, ask, tmp_path):
    def change(tree):
        del tree["modalities"]
        tree["tasks"] = {"moves": tree["tasks"]["moves"], "new": tree["tasks"]["colours"]}

    question = ask(recipe=recipe_with(checkpoint_of_three, tmp_path, change))
    assert {part.task.name for part in question.parts} == {"moves"}
    assert question.notices == (
        "Passed over, since the checkpoint does not have them: new",
        "Passed over, since the recipe names no examples of them: colours, tones, hues, pitches",
    )


def test_a_recipe_of_other_tasks_altogether_is_told(checkpoint_of_three, ask, tmp_path):
    def change(tree):
        tree["tasks"] = {"new": tree["tasks"]["colours"]}

    with pytest.raises(RecipeError, match="has none of the recipe's tasks, new; it has colours, moves"):
        ask(recipe=recipe_with(checkpoint_of_three, tmp_path, change))


def test_the_output_of_another_machine_is_not_made_here(checkpoint_of_three, ask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    away = yaml.safe_load((checkpoint_of_three / "recipe.yaml").read_text())["output"]
    shutil.rmtree(away, ignore_errors=True)
    assert ask().recipe.output == str(tmp_path / "runs")
    assert ask(f"output={tmp_path / 'mine'}").recipe.output == str(tmp_path / "mine")


@pytest.fixture
def checkpoint_with_results(checkpoint_of_three, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint_of_three, copy)
    state = json.loads((copy / "state.json").read_text())
    state["results"] = {"val": {"moves": {"top1": 40.0}}, "test": {"moves": {"top1": 50.0}, "tones": {"mAP": 60.0}}}
    (copy / "state.json").write_text(json.dumps(state))
    return copy


def test_what_training_said_stands_beside_the_same_examples_and_views(ask, checkpoint_with_results, media, tmp_path):
    said = {part.key: part.in_training for part in ask(of=checkpoint_with_results, tasks=("moves", "tones")).parts}
    assert said == {"val/moves": 40.0, "val/tones": None, "test/moves": 50.0, "test/tones": 60.0}
    other_views = ask("eval.views=paper", of=checkpoint_with_results, tasks=("moves",))
    assert {part.in_training for part in other_views.parts} == {None}
    other = make_task(tmp_path / "other", "video")
    other_examples = ask(f"tasks.moves.manifest={other}", of=checkpoint_with_results, tasks=("moves",))
    assert {part.in_training for part in other_examples.parts} == {None}
