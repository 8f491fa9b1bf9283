"""The per-class table against scikit-learn."""

from __future__ import annotations

import csv
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score, precision_recall_fscore_support

from polytrain.evaluate.per_class import balanced_accuracy, per_class, weakest, write_csv

seeds = st.integers(0, 2**32 - 1)


def names(classes: int) -> list[str]:
    return [f"class {number}" for number in range(classes)]


def check_scores(rows, truth, said, labels):
    """Precision, recall, F1 and counts, in percent, as scikit-learn has them."""
    expected = precision_recall_fscore_support(truth, said, labels=labels, zero_division=np.nan)
    for row, *expected_scores, support in zip(rows, *expected, strict=True):
        assert row.examples == support
        found = [math.nan if score is None else score for score in (row.precision, row.recall, row.f1)]
        assert found == pytest.approx([100 * score for score in expected_scores], nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 120), st.integers(2, 9))
def test_single_labels(seed, examples, classes):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(examples, classes, generator=generator)
    labels = torch.randint(classes, (examples,), generator=generator)
    rows = per_class(probabilities, torch.eye(classes)[labels], names(classes), multi_label=False)
    said = probabilities.argmax(1)
    check_scores(rows, labels, said, list(range(classes)))
    assert [row.said for row in rows] == torch.bincount(said, minlength=classes).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert balanced_accuracy(rows) == pytest.approx(100 * balanced_accuracy_score(labels, said))


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 120), st.integers(1, 9))
def test_several_labels(seed, examples, classes):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(examples, classes, generator=generator)
    targets = (torch.rand(examples, classes, generator=generator) < 0.3).float()
    rows = per_class(probabilities, targets, names(classes), multi_label=True)
    for number, row in enumerate(rows):
        check_scores([row], targets[:, number], (probabilities[:, number] >= 0.5).int(), [1])
        if targets[:, number].any():
            expected = average_precision_score(targets[:, number], probabilities[:, number])
            assert row.average_precision == pytest.approx(100 * expected, abs=1e-3)
        else:
            assert row.average_precision is None


def test_a_class_is_told_what_it_is_mostly_taken_for():
    said = torch.tensor([1, 1, 2, 0, 1])
    labels = torch.tensor([0, 0, 0, 0, 1])
    rows = per_class(torch.eye(3)[said], torch.eye(3)[labels], ["cat", "dog", "owl"], multi_label=False)
    assert (rows[0].taken_for, rows[0].taken_for_percent) == ("dog", 50.0)
    assert rows[1].taken_for == ""


def test_the_weakest_classes_come_first_and_those_without_examples_or_mistakes_not_at_all():
    said = torch.tensor([0, 1, 1, 1, 2])
    labels = torch.tensor([0, 0, 1, 1, 2])
    rows = per_class(torch.eye(4)[said], torch.eye(4)[labels], list("abcd"), multi_label=False)
    assert [row.name for row in weakest(rows, 8)] == ["a", "b"]
    assert [row.name for row in weakest(rows, 1)] == ["a"]


def test_the_csv_has_a_line_a_class_and_nothing_where_there_is_no_number(tmp_path):
    rows = per_class(torch.eye(3)[[0, 1, 0]], torch.eye(3)[[0, 1, 1]], ["a", "b, c", "d"], multi_label=False)
    with write_csv(rows, tmp_path / "deep" / "t.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["class"] for line in lines] == ["a", "b, c", "d"]
    assert lines[1]["recall"] == "50.00"
    assert lines[1]["taken_for"] == "a"
    assert lines[2]["recall"] == lines[0]["average_precision"] == ""
