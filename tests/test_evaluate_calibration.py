"""Calibration against torchmetrics, scikit-learn and scipy, and what stands on the diagram."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from polytrain.evaluate.calibration import (
    BINS,
    calibration,
    calibration_of,
    draw_reliability,
    reliability_diagram,
    wilson_interval,
)

seeds = st.integers(0, 2**32 - 1)


def one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(labels, classes).float()


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 300), st.integers(2, 12), st.sampled_from([0.3, 1.0, 4.0]))
def test_ece_of_single_labels_is_torchmetrics(seed, examples, classes, sharpness):
    generator = torch.Generator().manual_seed(seed)
    probabilities = (sharpness * torch.randn(examples, classes, generator=generator)).softmax(1)
    labels = torch.randint(classes, (examples,), generator=generator)
    expected = multiclass_calibration_error(probabilities, labels, classes, n_bins=15, norm="l1")
    found = calibration_of(probabilities, one_hot(labels, classes), multi_label=False)
    assert found.error == pytest.approx(100 * float(expected), abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 200), st.integers(1, 9))
def test_ece_of_several_labels_is_that_of_all_pairs(seed, examples, classes):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(examples, classes, generator=generator)
    targets = torch.randint(2, (examples, classes), generator=generator).float()
    expected = binary_calibration_error(probabilities.flatten(), targets.flatten().int(), n_bins=15, norm="l1")
    found = calibration_of(probabilities, targets, multi_label=True)
    assert found.error == pytest.approx(100 * float(expected), abs=1e-3)


def test_the_points_of_the_diagram_are_scikit_learns():
    rng = np.random.default_rng(0)
    said = rng.random(500) ** 2
    came_true = rng.random(500) < said**1.5
    found = calibration(said, came_true)
    true, predicted = calibration_curve(came_true, said, n_bins=BINS)
    some = found.counts > 0
    np.testing.assert_allclose(found.came_true[some], true)
    np.testing.assert_allclose(found.confidence[some], predicted)


def test_bins_hold_their_upper_edge_and_certainty_is_in_the_last():
    found = calibration(np.array([0.0, 0.25, 0.5, 1.0]), np.array([0, 1, 0, 1]), bins=4)
    assert found.counts.tolist() == [2, 1, 0, 1]


def test_half_right_at_nine_tenths_is_off_by_forty():
    found = calibration(np.full(10, 0.9), np.array([1] * 5 + [0] * 5))
    assert found.error == pytest.approx(40)
    assert found.bias == pytest.approx(40)
    assert calibration(np.full(10, 0.1), np.array([1] * 5 + [0] * 5)).bias == pytest.approx(-40)


def test_a_model_that_says_nan_is_not_sure():
    found = calibration(np.array([math.nan, 0.9]), np.array([0, 1]))
    assert found.counts[0] == 1
    assert math.isfinite(found.error)


def test_without_examples_there_is_no_error_but_a_picture(tmp_path):
    found = calibration_of(torch.empty(0, 3), torch.empty(0, 3), multi_label=False)
    assert math.isnan(found.error)
    reliability_diagram(found, tmp_path / "none.png", title="none", multi_label=False)
    assert Image.open(tmp_path / "none.png").size[0] > 300


def test_intervals_are_wilsons():
    hits, counts = np.array([0, 1, 9, 40]), np.array([1, 1, 12, 40])
    low, high = wilson_interval(hits / counts, counts)
    for number, (k, n) in enumerate(zip(hits.tolist(), counts.tolist())):
        expected = binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert (low[number], high[number]) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_the_diagram_shows_what_was_found():
    said, came_true = np.array([0.62] * 4 + [0.97] * 6), np.array([1, 1, 0, 0] + [1] * 6)
    figure = draw_reliability(calibration(said, came_true), title="shapes, test", multi_label=False)
    above, below = figure.axes
    assert above.get_title("left").startswith("shapes, test\nECE 6.6 %; too sure by 3.0 points")
    assert [bar.get_height() for bar in above.patches if bar.get_height()] == [50, 100]
    assert [bar.get_height() for bar in below.patches if bar.get_height()] == [4, 6]
    points = above.containers[-1].lines[0].get_xydata()
    np.testing.assert_allclose(points, [[62, 50], [97, 100]])
