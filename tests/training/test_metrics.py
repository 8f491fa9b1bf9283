"""Evaluation metrics against scikit-learn, ties included."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, top_k_accuracy_score
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from polytrain.training.metrics import confusion_matrix, evaluate_predictions, mean_average_precision, top_k

seeds = st.integers(0, 2**32 - 1)


def scores_of(rng: np.random.Generator, shape: tuple[int, int], levels: int) -> np.ndarray:
    """Random logits; with few `levels` many of them are equal."""
    return rng.integers(-levels, levels + 1, shape).astype(np.float32) * rng.choice([0.1, 1.0, 30.0])


@settings(max_examples=60, deadline=None)
@given(seed=seeds, examples=st.integers(1, 60), classes=st.integers(1, 7), levels=st.sampled_from([1, 3, 1000]))
def test_map_is_scikit_learns(seed, examples, classes, levels):
    rng = np.random.default_rng(seed)
    scores = scores_of(rng, (examples, classes), levels)
    targets = (rng.random((examples, classes)) < rng.random()).astype(np.int64)
    has_positive = targets.any(0)
    result = mean_average_precision(torch.from_numpy(scores), torch.from_numpy(targets))
    if not has_positive.any():
        assert math.isnan(result)
    else:
        theirs = average_precision_score(targets[:, has_positive], scores[:, has_positive], average="macro")
        assert result == pytest.approx(100 * theirs, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, examples=st.integers(1, 60), classes=st.integers(3, 12), k=st.integers(1, 11))
def test_top_k_is_scikit_learns_where_no_two_logits_are_equal(seed, examples, classes, k):
    rng = np.random.default_rng(seed)
    logits = rng.permuted(np.tile(np.arange(classes, dtype=np.float32), (examples, 1)), axis=1)
    labels = rng.integers(0, classes, examples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn remarks on k >= classes
        theirs = top_k_accuracy_score(labels, logits, k=k, labels=range(classes))
    assert top_k(torch.from_numpy(logits), torch.from_numpy(labels), k) == pytest.approx(100 * theirs)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, examples=st.integers(1, 50), classes=st.integers(2, 6))
def test_top_1_with_ties_is_argmax_accuracy(seed, examples, classes):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(scores_of(rng, (examples, classes), 1))
    labels = torch.from_numpy(rng.integers(0, classes, examples))
    assert top_k(logits, labels, 1) == pytest.approx(100 * (logits.numpy().argmax(1) == labels.numpy()).mean())


def test_a_model_that_cannot_tell_classes_apart_is_right_by_chance():
    assert top_k(torch.zeros(10, 10), torch.arange(10), 1) == 10.0
    assert top_k(torch.zeros(10, 10), torch.arange(10), 5) == 50.0


def test_top_5_of_up_to_five_classes_is_100():
    assert evaluate_predictions(torch.eye(3), torch.tensor([1, 2, 0]), multi_label=False) == {
        "top1": 0.0,
        "top5": 100.0,
    }


def test_logits_that_a_sigmoid_would_round_to_one_still_rank():
    scores = torch.tensor([[60.0], [50.0], [40.0], [-3.0]])
    targets = torch.tensor([[0], [1], [0], [0]])
    assert mean_average_precision(scores, targets) == pytest.approx(50.0)


def test_a_class_without_a_positive_is_left_out_of_the_mean_in_silence():
    scores = torch.tensor([[0.9, 0.2], [0.1, 0.8]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate_predictions(scores, torch.tensor([[1, 0], [0, 0]]), multi_label=True) == {"mAP": 100.0}


def test_no_example_gives_nan():
    assert math.isnan(top_k(torch.zeros(0, 10), torch.zeros(0, dtype=torch.long), 1))
    assert math.isnan(mean_average_precision(torch.zeros(0, 3), torch.zeros(0, 3)))


def test_a_nan_logit_is_a_wrong_answer():
    assert top_k(torch.full((4, 10), float("nan")), torch.arange(4), 1) == 0.0


def test_half_precision_logits_are_taken():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]], dtype=torch.bfloat16)
    assert evaluate_predictions(logits, torch.tensor([1, 2]), multi_label=False)["top1"] == 50.0


def test_rows_of_the_confusion_matrix_are_true_classes():
    rng = np.random.default_rng(1)
    logits, labels = rng.random((200, 5), dtype=np.float32), rng.integers(0, 5, 200)
    ours = confusion_matrix(torch.from_numpy(logits), torch.from_numpy(labels))
    assert np.array_equal(ours.numpy(), sklearn_confusion_matrix(labels, logits.argmax(1), labels=range(5)))


def test_importing_metrics_does_not_import_torchmetrics():
    code = "import sys, polytrain.training.metrics; sys.exit('torchmetrics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
