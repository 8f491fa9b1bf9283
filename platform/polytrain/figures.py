"""The pictures of a run: its schedule as a strip, its curves, its confusion matrices; PNG files.

A task has one colour in all of a run's figures: the colour of its place among the task names. matplotlib is imported
by the functions that draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart, without its yellow (too pale on white) and its
# black (the mean's); wine is Paul Tol's.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#882255")
DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.2)))
"""The ninth task takes the first colour again, dashed; the seventeenth, dotted."""
STRIP_BINS = 600
"""Columns of the schedule strip: a run of more steps is shown as the share of a column's steps."""
CURVE_POINTS = 2000
CLASS_NAMES_SHOWN = 40
DPI = 110

History = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def task_styles(tasks: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and dashes of each task's lines. Sorted by name: the order of the recipe does not matter."""
    return {
        task: {"color": PALETTE[index % len(PALETTE)], "linestyle": DASHES[index // len(PALETTE) % len(DASHES)]}
        for index, task in enumerate(sorted(tasks))
    }


def schedule_density(tasks: int, order: np.ndarray) -> np.ndarray:
    """Share of steps that draw each task, [tasks, columns] in [0, 1], columns = min(steps, STRIP_BINS).

    `order` is [U] of task ids, or [U, T] when a step draws several tasks (accumulated).
    """
    order = np.asarray(order).reshape(len(order), -1)
    steps = len(order)
    columns = min(steps, STRIP_BINS)
    column = np.arange(steps) * columns // max(steps, 1)
    cells = order * columns + column[:, None]
    counts = np.bincount(cells.ravel(), minlength=tasks * columns).reshape(tasks, columns)
    return counts / np.maximum(np.bincount(column, minlength=columns), 1)


def schedule_strip(tasks: Sequence[str], order: np.ndarray, path: str | Path) -> None:
    """Draw which task each step takes: one row a task, a mark where it is drawn. `order`: see `schedule_density`.

    Runs longer than STRIP_BINS steps are binned: the darker, the larger the task's share of the steps there.
    """
    steps = len(order)
    figure = draw_schedule(tasks, np.asarray(order))
    figure.axes[0].set_title(f"Schedule: {steps:,} steps", loc="left", fontsize=11)
    _save(figure, path)


def draw_schedule(tasks: Sequence[str], order: np.ndarray) -> Figure:
    """The figure of `schedule_strip`."""
    from matplotlib.colors import to_rgb

    steps = len(order)
    density = schedule_density(len(tasks), order)
    binned = steps > STRIP_BINS
    # Against the row's own maximum a rare task shows, too; in the margin stands its true share.
    strongest = np.maximum(density.max(axis=1, keepdims=True), 1e-12)
    shade = (density / strongest)[..., None]
    styles = task_styles(tasks)
    colours = np.array([to_rgb(styles[task]["color"]) for task in tasks])[:, None]
    image = 1 - shade * (1 - colours)

    figure = _figure(10, 1.2 + 0.34 * len(tasks))
    axes = figure.subplots()
    axes.imshow(image, aspect="auto", interpolation="nearest", extent=(0, steps, len(tasks) - 0.5, -0.5))
    axes.set_yticks(range(len(tasks)), [_shorten(task) for task in tasks])
    axes.set_xlabel("step" + (" (darker: drawn more often there, row by row)" if binned else ""))
    axes.set_yticks(np.arange(len(tasks) + 1) - 0.5, minor=True)
    axes.grid(which="minor", axis="y", color="white", linewidth=3)
    axes.tick_params(which="both", axis="y", length=0)
    axes.spines[:].set_visible(False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    counts = np.bincount(np.asarray(order).ravel(), minlength=len(tasks))
    for row, count in enumerate(counts):
        share = 100 * count / max(steps, 1)
        axes.annotate(
            f"{count:,} ({share:.0f} %)" if share >= 1 or not count else f"{count:,} (<1 %)",
            (1.005, row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            annotation_clip=False,
        )
    return figure


def curves(history: History, path: str | Path) -> None:
    """Draw a run's metrics as a grid: training loss and learning rate of each task, validation, throughput.

    `history`: steps and values by MLflow name (`train/<task>/loss`, `val/<task>/top1`, ...). Panels without data are
    left out; losses are drawn raw (pale) and smoothed. Other names are ignored.
    """
    _save(draw_curves(history), path)


def draw_curves(history: History) -> Figure:
    """The figure of `curves`."""
    panels = [(title, unit, names) for title, unit, names in _panels(history) if names]
    figure = _figure(12, 3.4 * max(1, math.ceil(len(panels) / 2)) + 0.6)
    tasks = {parts[1] for name in history if len(parts := name.split("/")) == 3}
    styles = task_styles(tasks)
    grid = figure.subplots(max(1, math.ceil(len(panels) / 2)), 2, squeeze=False).ravel()
    for axes, (title, unit, names) in zip(grid, panels, strict=False):
        for name in names:
            _curve(axes, name, *history[name], styles)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_ylabel(unit)
        axes.set_xlabel("step")
        axes.grid(color="#E6E6E6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        if unit == "percent":
            axes.set_ylim(-2, 102)
        if unit == "fraction of time":
            axes.set_ylim(0, 1)
        if unit == "examples/s":
            axes.set_ylim(bottom=0)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    if not panels:
        grid[0].text(0, 0.5, "No metric has been recorded yet.")
    # One legend for the whole figure, below the panels: it can cover no data.
    handles = {line.get_label(): line for axes in grid for line in axes.lines if not line.get_label().startswith("_")}
    if handles:
        names = sorted(handles, key=lambda label: (label not in map(_shorten, styles), label))
        lines = [handles[name] for name in names]
        figure.legend(lines, names, loc="outside lower center", ncols=min(len(names), 6), frameon=False, fontsize=9)
    return figure


def _panels(history: History) -> list[tuple[str, str, list[str]]]:
    """(title, unit, metric names) of every panel, also of those without a metric."""

    def named(first: str, *last: str) -> list[str]:
        return sorted(
            name for name in history if (parts := name.split("/"))[0] == first and len(parts) == 3 and parts[2] in last
        )

    mean = [name for name in ("val/mean",) if name in history]
    accuracy = named("val", "top1", "mAP")
    return [
        ("Training loss (pale: each step; line: smoothed)", "loss", named("train", "loss")),
        ("Validation: top-1, or mAP of multi-label tasks", "percent", accuracy + (mean if accuracy else [])),
        ("Learning rate", "learning rate", named("train", "lr")),
        ("Validation loss", "loss", named("val", "loss")),
        ("Throughput", "examples/s", [name for name in ("throughput/examples_per_s",) if name in history]),
        (
            "Time spent waiting for data",
            "fraction of time",
            [name for name in ("throughput/data_wait_fraction",) if name in history],
        ),
    ]


def _curve(
    axes: Axes, name: str, steps: Sequence[float], values: Sequence[float], styles: dict[str, dict[str, Any]]
) -> None:
    """One metric as a line; losses of training raw and smoothed, validation with its points marked."""
    parts = name.split("/")
    steps, values = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    if len(parts) == 3:
        style, label = styles[parts[1]], _shorten(parts[1])
    elif name == "val/mean":
        style, label = {"color": "#000000", "linewidth": 2.4}, "mean of tasks"
    else:
        style, label = {"color": "#444444"}, "_" + name
    if parts[0] == "train" and parts[-1] == "loss":
        axes.plot(*_thinned(steps, values), color=style["color"], alpha=0.22, linewidth=0.8, label="_raw")
        values = smooth(values)
    marker = {"marker": "o", "markersize": 4} if parts[0] == "val" or len(steps) == 1 else {}
    axes.plot(*_thinned(steps, values), **{"linewidth": 1.6, **style, **marker}, label=label)


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a centred window of a twentieth of the points, shorter at both ends; NaN and infinities are passed
    over. [N] -> [N]."""
    half = len(values) // 40
    good = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(good, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(good)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    number = counts[high] - counts[low]
    return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most about CURVE_POINTS points, the last one among them."""
    stride = -(-len(steps) // CURVE_POINTS)
    if stride <= 1:
        return steps, values
    kept = np.unique(np.append(np.arange(0, len(steps), stride), len(steps) - 1))
    return steps[kept], values[kept]


def confusion(matrix: np.ndarray, classes: Sequence[str], path: str | Path) -> None:
    """Draw counts [C, C] (row: true class, column: predicted) as percent of each row; names and numbers while they
    stay readable."""
    _save(draw_confusion(np.asarray(matrix), classes), path)


def draw_confusion(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """The figure of `confusion`."""
    matrix = np.asarray(matrix, dtype=float)
    totals = matrix.sum(axis=1, keepdims=True)
    percent = 100 * matrix / np.maximum(totals, 1)
    count = len(classes)
    named = count <= CLASS_NAMES_SHOWN
    size = min(12.0, 3.2 + 0.42 * count) if named else 9.0
    figure = _figure(size + 0.8, size)
    axes = figure.subplots()
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    right = 100 * np.trace(matrix) / max(matrix.sum(), 1)
    axes.set_title(f"{right:.1f} % of {matrix.sum():,.0f} examples are right", loc="left", fontsize=11)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if named:
        names = [_shorten(str(name)) for name in classes]
        upright = max(map(len, names)) > 3
        axes.set_xticks(range(count), names, rotation=90 if upright else 0, fontsize=8)
        axes.set_yticks(range(count), names, fontsize=8)
        axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1)
        axes.tick_params(which="both", length=0)
    if count <= CLASS_NAMES_SHOWN // 2:
        for row, column in np.argwhere(matrix > 0):
            value = percent[row, column]
            shown = f"{value:.0f}" if value >= 0.5 else "<1"
            colour = "white" if value > 55 else "black"
            axes.text(column, row, shown, ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=axes, label="percent of the true class", shrink=0.8)
    return figure


def _shorten(name: str, most: int = 24) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _figure(width: float, height: float) -> Figure:
    """A figure of that many inches, drawn by Agg whatever the user's backend is and without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", facecolor="white")
