"""Calibration: does a model that says 80 % turn out to be right in 80 % of the cases?

The expected calibration error (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2) and its
reliability diagram, over 15 bins of equal width as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polytrain.figures import PALETTE, _figure, _save

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

BINS = 15


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was said and what came true, by bins of confidence (low, high] of equal width over [0, 1]."""

    counts: np.ndarray  # [bins] int64
    confidence: np.ndarray  # [bins] mean confidence in [0, 1]; NaN in an empty bin
    came_true: np.ndarray  # [bins] share that came true in [0, 1]; NaN in an empty bin

    @property
    def error(self) -> float:
        """The expected calibration error in percent: the bins' gaps, weighed by their counts. NaN without any."""
        if not self.counts.sum():
            return float("nan")
        gaps = np.nan_to_num(np.abs(self.came_true - self.confidence))
        return float(100 * (gaps * self.counts).sum() / self.counts.sum())

    @property
    def bias(self) -> float:
        """Mean confidence minus the share that came true, percent: above 0 is too sure of itself."""
        if not self.counts.sum():
            return float("nan")
        return float(100 * (np.nan_to_num(self.confidence - self.came_true) * self.counts).sum() / self.counts.sum())


def calibration(confidence: np.ndarray, came_true: np.ndarray, bins: int = BINS) -> Calibration:
    """From confidences [N] in [0, 1] and what came true [N], zeros and ones. A confidence of 0 is in the first bin;
    one that is NaN counts as 0: what says nothing is not sure."""
    confidence = np.nan_to_num(np.asarray(confidence, np.float64))
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Calibration(
            counts,
            np.bincount(place, confidence, bins) / counts,
            np.bincount(place, np.asarray(came_true, np.float64), bins) / counts,
        )


def calibration_of(probabilities: Tensor, targets: Tensor, *, multi_label: bool) -> Calibration:
    """Of predictions [N, classes] and their targets, zeros and ones.

    One label an example: how sure the model is of the class it names. Several: of every pair of example and class, how
    sure it is that the class is there; most pairs are easy negatives, so errors of tasks with many classes are small.
    """
    if multi_label:
        return calibration(probabilities.flatten().numpy(), targets.flatten().numpy())
    if not len(probabilities):
        return calibration(np.empty(0), np.empty(0))
    confidence, named = probabilities.max(1)
    return calibration(confidence.numpy(), targets.gather(1, named[:, None])[:, 0].numpy())


def wilson_interval(share: np.ndarray, counts: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Where a share [bins] of `counts` [bins] examples may lie by chance (Wilson 1927; z = 1.96: 95 %)."""
    middle = (share + z**2 / (2 * counts)) / (1 + z**2 / counts)
    half = z * np.sqrt(share * (1 - share) / counts + z**2 / (4 * counts**2)) / (1 + z**2 / counts)
    return middle - half, middle + half


def reliability_diagram(found: Calibration, path: str | Path, *, title: str, multi_label: bool) -> None:
    """Draw what came true over what was said, and below it how often each was said."""
    _save(draw_reliability(found, title=title, multi_label=multi_label), path)


def draw_reliability(found: Calibration, *, title: str, multi_label: bool) -> Figure:
    """The figure of `reliability_diagram`."""
    bins = len(found.counts)
    middles, width = 100 * (np.arange(bins) + 0.5) / bins, 100 / bins
    some = found.counts > 0
    figure = _figure(5.6, 6.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.bar(middles, np.nan_to_num(100 * found.came_true), 0.94 * width, color="#BBD7EA", label="came true")
    above.plot([0, 100], [0, 100], "--", color="#444444", linewidth=1.2, label="perfectly calibrated")
    # Points at the mean of what was said, for in a bin most may lie at one end; few examples prove little, and show it.
    share = found.came_true[some]
    low, high = wilson_interval(share, found.counts[some])
    above.errorbar(
        100 * found.confidence[some], 100 * share, 100 * np.clip([share - low, high - share], 0, None), fmt="o",
        color=PALETTE[1], markersize=4.5, linewidth=1.3, label="with its 95 % interval",
    )  # fmt: skip
    above.set_ylabel("percent that came true")
    above.set_ylim(0, 102)
    sure = "too sure" if found.bias > 0 else "too modest"
    lean = f"; {sure} by {abs(found.bias):.1f} points on average" if found.counts.sum() else ""
    above.set_title(f"{title}\nECE {found.error:.1f} %{lean}", loc="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    below.bar(middles, found.counts, 0.94 * width, color="#7F7F7F")
    below.set_ylabel("pairs" if multi_label else "examples")
    below.set_xlabel(
        "percent said, of each pair of example and class" if multi_label else "percent said of the predicted class"
    )
    below.set_xlim(0, 100)
    below.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    for axes in (above, below):
        axes.grid(color="#E6E6E6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
