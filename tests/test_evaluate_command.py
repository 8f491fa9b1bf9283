"""The words of `python jobs/evaluate.py`, and what it tells before anything starts."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from polytrain.evaluate.command import evaluate_command, sorted_words
from polytrain.recipe import RecipeError


def test_words_are_sorted():
    asked = sorted_words(["runs/a/final", "splits=[train,test]", "mine.yaml", "tasks=[b]", "views=paper", "data.x=1"])
    assert (asked.checkpoint, asked.recipe) == ("runs/a/final", "mine.yaml")
    assert asked.splits == ("train", "test")
    assert asked.tasks == ("b",)
    assert asked.overrides == ("eval.views=paper", "data.x=1")


def test_val_and_test_of_all_tasks_are_what_is_judged_unless_asked_otherwise():
    asked = sorted_words(["final"])
    assert (asked.recipe, asked.splits, asked.tasks, asked.overrides) == (None, ("val", "test"), None, ())


def test_lists_need_no_brackets_and_name_each_once():
    assert sorted_words(["c", "splits=test"]).splits == ("test",)
    assert sorted_words(["c", "tasks=b,a,b"]).tasks == ("b", "a")


def test_views_of_one_modality_are_the_recipes_key():
    assert sorted_words(["c", "views.video=[2,3]"]).overrides == ("eval.views.video=[2,3]",)


def test_a_folder_may_have_an_equals_sign():
    assert sorted_words(["runs/lr=0.1/final"]).checkpoint == "runs/lr=0.1/final"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["splits=test"], "no checkpoint was given"),
        (["a", "b", "c"], "a, b, c: a checkpoint and a recipe"),
        (["a", "splits=[tset]"], "splits: tset is none of train, val, test"),
        (["a", "tasks=[]"], "tasks: name at least one"),
    ],
)
def test_what_can_not_be_meant_is_told(words, told):
    with pytest.raises(RecipeError, match=told):
        sorted_words(words)


def told(capsys, *words) -> str:
    assert evaluate_command("", [str(word) for word in words]) == 2
    return capsys.readouterr().err


def test_a_task_that_the_checkpoint_does_not_have_is_told_with_those_it_has(checkpoint_of_three, capsys):
    assert "has no task colour; it has colours, " in told(capsys, checkpoint_of_three, "tasks=colour")


def test_nothing_there_is_told(tmp_path, capsys):
    assert "there is nothing at" in told(capsys, tmp_path / "gone")


def test_a_damaged_checkpoint_is_told(checkpoint_of_three, tmp_path, capsys):

    copy = tmp_path / "copy"
    shutil.copytree(checkpoint_of_three, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert "is damaged" in told(capsys, copy)


def test_views_that_a_modality_can_not_have_are_told(checkpoint_of_three, capsys):
    assert "a sound has no crops" in told(capsys, checkpoint_of_three, "views.audio=[1,3]")


def test_a_dry_run_says_what_would_be_judged(checkpoint_of_three, capsys):
    assert evaluate_command("", [str(checkpoint_of_three), "--dry-run", "splits=test", "views=paper"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(line[0], line[5]) for line in lines if "test" in line] == [
        ("colours", "1"), ("moves", "12"), ("tones", "4"), ("hues", "1"), ("pitches", "4"),
    ]  # fmt: skip


def test_a_question_is_checked_without_torch_ray_or_mlflow(checkpoint_of_three):
    """Mistakes are told at once."""
    code = (
        "import sys; from polytrain.evaluate.command import evaluate_command\n"
        f"assert evaluate_command('', [{str(checkpoint_of_three)!r}, '--dry-run']) == 0\n"
        "sys.exit(' '.join({'torch', 'ray', 'mlflow'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
