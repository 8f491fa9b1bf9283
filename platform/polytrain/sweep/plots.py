"""A task's picture: validation metric over learning rate, and every trial's curves over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polytrain.figures import DASHES, PALETTE, _figure, _save, _thinned, smooth
from polytrain.sweep.outcome import Row, winners

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TICKS = 8
"""Up to so many values tried are named on their axis."""

Curve = Sequence[tuple[int, float]]


def task_plot(rows: Sequence[Row], curves: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """Draw the trials of one task. `curves`: by fingerprint, `loss` and `val` as (step, value)."""
    _save(draw_task(rows, curves), path)


def draw_task(rows: Sequence[Row], curves: Mapping[str, Mapping[str, Curve]]) -> Figure:
    """The figure of `task_plot`."""
    first = rows[0].point
    best = winners(rows).get(first.task)
    figure = _figure(14, 4.4)
    scores, losses, vals = figure.subplots(1, 3)
    _scores(scores, rows, best)
    for number, row in enumerate(rows):
        style = {"color": PALETTE[number % len(PALETTE)], "linestyle": DASHES[number // len(PALETTE) % len(DASHES)]}
        style |= {"linewidth": 2.4 if row is best else 1.3}
        label = row.point.label + (" (winner)" if row is best else "") + ("" if row.ended.score is not None else
                                                                        f" ({row.ended.shown})")  # fmt: skip
        of_row = curves.get(row.point.fingerprint, {})
        for axes, name in ((losses, "loss"), (vals, "val")):
            steps, values = (np.array(part, dtype=float) for part in zip(*of_row.get(name) or [(np.nan, np.nan)]))
            marker = {"marker": "o", "markersize": 4} if name == "val" else {}
            axes.plot(*_thinned(steps, smooth(values) if name == "loss" else values), label=label, **style, **marker)
    for axes, title, unit in (
        (losses, "Training loss, smoothed", "loss"),
        (vals, f"Validation {first.metric}", "percent"),
    ):
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.set_xlim(0, 1.03 * first.recipe.tasks[first.task].steps)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        if unit == "percent":
            axes.set_ylim(-3, 103)
        axes.grid(color="#E6E6E6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = losses.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False, fontsize=9)
    return figure


def _scores(axes, rows: Sequence[Row], best: Row | None) -> None:
    """The score over the first key that has numbers, the learning rate where it is searched: one line a combination
    of the other keys."""
    keys = list(rows[0].point.values)
    key = "lr" if "lr" in keys else next((k for k in keys if k.endswith(".lr")), keys[0])
    numeric = all(isinstance(row.point.values[key], (int, float)) for row in rows)
    lines: dict[str, list[tuple]] = {}
    for row in rows:
        others = " ".join(f"{k.rsplit('.', 1)[-1]}={v}" for k, v in row.point.values.items() if k != key)
        value = row.point.values[key] if numeric else str(row.point.values[key])
        lines.setdefault(others, []).append((value, row.ended.score))
    for number, (others, points) in enumerate(lines.items()):
        xs, ys = zip(*sorted(points, key=lambda point: point[0]))
        ys = [np.nan if y is None else y for y in ys]
        axes.plot(xs, ys, marker="o", markersize=5, color=PALETTE[number % len(PALETTE)], label=others or None)
    failed = [row for row in rows if row.ended.score is None]
    if failed:
        xs = [row.point.values[key] if numeric else str(row.point.values[key]) for row in failed]
        axes.plot(xs, [0] * len(xs), "x", color="#D55E00", label="no score (diverged or failed)")
    if best is not None:
        x = best.point.values[key] if numeric else str(best.point.values[key])
        axes.plot([x], [best.ended.score], "*", markersize=15, color="#E69F00", label="winner")
    if numeric and all(row.point.values[key] > 0 for row in rows):
        axes.set_xscale("log")
    tried = sorted({row.point.values[key] for row in rows}) if numeric else []
    if 0 < len(tried) <= TICKS:
        axes.set_xticks(tried, [f"{value:g}" for value in tried])
        axes.minorticks_off()
    axes.set_title(f"{rows[0].point.task}: validation {rows[0].point.metric}", loc="left", fontsize=11)
    axes.set_xlabel("learning rate" if key.rsplit(".", 1)[-1] == "lr" else key)
    axes.set_ylabel("percent")
    axes.set_ylim(-3, 103)
    axes.grid(color="#E6E6E6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8)
