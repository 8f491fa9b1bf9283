"""One split judged: the numbers, the files, and the tables over several."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from polytrain.evaluate.outcome import Outcome, judge, results_text, too_bad, weakest_text, write_tables
from polytrain.evaluate.parts import Asked, open_question
from polytrain.training.evaluation import Predictions


@pytest.fixture
def part(checkpoint_of_three):
    """The test split of a task."""

    def named(task):
        (found,) = open_question(Asked(str(checkpoint_of_three), splits=("test",), tasks=(task,))).parts
        return found

    return named


@pytest.fixture
def guesses(part):
    """A task's part, and random predictions of it."""

    def of(task):
        found = part(task)
        ids = np.arange(len(found.examples))
        targets = torch.zeros(len(ids), 3)
        for row, labels in enumerate(found.classes_of(found.examples.labels(ids.tolist()))):
            targets[row, labels] = 1
        logits = 3 * torch.randn(len(ids), 3, generator=torch.Generator().manual_seed(4))
        return found, Predictions(ids, logits, targets)

    return of


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_task_of_single_labels(guesses, tmp_path):
    part, predictions = guesses("colours")
    outcome = judge(part, predictions, [], tmp_path)
    labels, said = predictions.targets.argmax(1), predictions.logits.argmax(1)
    assert outcome.metrics["top1"] == pytest.approx(100 * (labels == said).float().mean().item())
    assert outcome.metrics["balanced_accuracy"] == pytest.approx(100 * balanced_accuracy_score(labels, said))
    assert outcome.mistakes == int((labels != said).sum())
    assert outcome.score == outcome.metrics["top1"]
    assert 0 < outcome.metrics["ece"] < 100
    assert files(tmp_path) == {
        "predictions/colours.parquet", "per_class/colours.csv", "calibration/colours.png", "confusion/colours.png",
        "mistakes/colours.png",
    }  # fmt: skip
    assert pq.read_table(tmp_path / "predictions" / "colours.parquet")["predicted"].to_pylist() == said.tolist()


def test_a_task_of_several_labels_has_no_confusion_matrix(guesses, tmp_path):
    part, predictions = guesses("tones")
    outcome = judge(part, predictions, [], tmp_path)
    assert set(outcome.metrics) == {"mAP", "loss", "examples", "ece"}
    assert files(tmp_path) == {
        "predictions/tones.parquet", "per_class/tones.csv", "calibration/tones.png", "mistakes/tones.png"
    }  # fmt: skip


def test_a_model_without_mistakes_has_no_sheet_of_them(guesses, tmp_path):
    part, predictions = guesses("colours")
    perfect = Predictions(predictions.ids, 9 * predictions.targets, predictions.targets)
    outcome = judge(part, perfect, [], tmp_path)
    assert (outcome.metrics["top1"], outcome.mistakes, outcome.weakest) == (100, 0, [])
    assert not (tmp_path / "mistakes").exists()


def test_a_split_of_which_nothing_can_be_decoded_has_no_numbers(part, tmp_path):
    nothing = Predictions(np.empty(0, np.int64), torch.empty(0, 3), torch.empty(0, 3))
    outcome = judge(part("colours"), nothing, [(0, "a.png", "damaged")] * 8, tmp_path)
    assert math.isnan(outcome.score)
    assert outcome.bad == 8
    assert "colours" in results_text([outcome])


def test_an_outcome_survives_json(guesses, tmp_path):
    part, predictions = guesses("colours")
    outcome = judge(part, predictions, [], tmp_path)
    assert Outcome(**json.loads(json.dumps(asdict(outcome)))) == outcome


def outcome(task="colours", split="test", bad=0, **metrics):
    metrics = {"top1": 50.0, "examples": 98} | metrics
    return Outcome(task, split, "image", "top1", metrics, views=1, in_training=None, bad=bad, mistakes=49)


def test_the_table_has_a_line_a_split(tmp_path):
    outcomes = [outcome(split="val"), outcome(ece=4.26), outcome("moves", balanced_accuracy=61.0)]
    lines = results_text(outcomes).splitlines()
    assert len(lines) == 5
    assert lines[3].split() == ["colours", "test", "top1", "50.0", "-", "-", "-", "4.3", "1", "98", "-"]
    markdown, parquet = write_tables(outcomes, tmp_path)
    assert markdown.read_text().count("\n") == 5
    rows = pq.read_table(parquet).to_pylist()
    assert [(row["task"], row["split"], row["ece"]) for row in rows][:2] == [
        ("colours", "val", None), ("colours", "test", 4.26),
    ]  # fmt: skip


def test_the_weakest_classes_of_the_last_split_are_told(guesses, tmp_path):
    part, predictions = guesses("colours")
    found = judge(part, predictions, [], tmp_path)
    text = weakest_text([outcome(split="val"), found])
    weakest = min(found.weakest, key=lambda row: row["f1"])
    assert text.splitlines()[2].split()[:3] == ["colours", weakest["name"], str(weakest["examples"])]
    assert weakest_text([outcome()]) == ""


def test_more_bad_media_than_allowed_are_a_fault():
    assert too_bad([outcome(bad=2)], 0.02) is None
    assert "colours: 2 of 100 test examples can't be decoded" in too_bad([outcome(), outcome(bad=2)], 0.01)


def test_pictures_are_pictures(guesses, tmp_path):
    judge(*guesses("moves"), [], tmp_path)
    for file in tmp_path.rglob("*.png"):
        assert min(Image.open(file).size) > 200
