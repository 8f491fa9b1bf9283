"""The pictures of a run: what stands in them, read from their axes and their pixels."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from polytrain.figures import (
    confusion,
    curves,
    draw_confusion,
    draw_curves,
    draw_schedule,
    schedule_density,
    schedule_strip,
    smooth,
    task_styles,
)


def history_of(tasks: list[str], steps: int = 200) -> dict:
    history = {}
    for index, task in enumerate(tasks):
        at = np.arange(index, steps, len(tasks))
        history[f"train/{task}/loss"] = (at, 2.0 / (1 + at))
        history[f"train/{task}/lr"] = (at, 1e-3 * (1 - at / steps))
        history[f"val/{task}/top1"] = ([100, 200], [40.0, 60.0 + index])
    history["val/mean"] = ([100, 200], [40.0, 60.5])
    return history


def lines(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): np.asarray(line.get_ydata(), dtype=float) for line in axes.lines}


def test_a_short_schedule_shows_every_step():
    order = np.array([0, 1, 1, 2, 0])
    assert np.array_equal(schedule_density(3, order), [[1, 0, 0, 0, 1], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0]])


def test_a_long_schedule_is_shown_as_shares():
    order = np.random.default_rng(0).choice(3, 417_920, p=[0.7, 0.29, 0.01])
    density = schedule_density(3, order)
    assert density.shape == (3, 600)
    assert np.allclose(density.sum(0), 1)
    assert np.allclose(density.mean(1), [0.7, 0.29, 0.01], atol=0.01)


def test_an_accumulated_step_marks_all_its_tasks():
    assert np.array_equal(schedule_density(3, np.tile(np.arange(3), (50, 1))), np.ones((3, 50)))


def test_the_strip_has_a_named_row_a_task_with_its_count():
    axes = draw_schedule(["digits", "tones"], np.array([0] * 75 + [1] * 25)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["digits", "tones"]
    assert [text.get_text() for text in axes.texts] == ["75 (75 %)", "25 (25 %)"]
    assert axes.get_xlim() == (0, 100)


def test_the_strip_in_pixels_is_each_task_in_its_colour_at_its_place(tmp_path):
    schedule_strip(["a", "b"], np.array([0] * 50 + [1] * 50), tmp_path / "deep" / "schedule.png")
    pixels = np.asarray(Image.open(tmp_path / "deep" / "schedule.png").convert("RGB")).astype(int)
    styles = task_styles(["a", "b"])
    centre = {}
    for task in ("a", "b"):
        wanted = np.round(255 * np.array(to_rgb(styles[task]["color"])))
        rows, columns = np.nonzero((np.abs(pixels - wanted) <= 2).all(2))
        assert len(rows) > 1000
        centre[task] = rows.mean(), columns.mean()
    assert centre["a"][0] < centre["b"][0]
    assert centre["a"][1] < centre["b"][1]


def test_a_task_has_one_colour_in_every_panel_and_in_any_order():
    figure = draw_curves(history_of(["tones", "digits"]))
    for axes in figure.axes:
        for line in axes.lines:
            if line.get_label() in ("tones", "digits"):
                assert line.get_color() == task_styles(["digits", "tones"])[line.get_label()]["color"]


def test_twenty_tasks_are_told_apart():
    styles = task_styles([f"task{n}" for n in range(20)])
    assert len({(style["color"], str(style["linestyle"])) for style in styles.values()}) == 20


def test_curves_show_the_values_recorded():
    history = history_of(["digits", "tones"])
    panels = {axes.get_title("left"): axes for axes in draw_curves(history).axes}
    assert list(panels) == [
        "Training loss (pale: each step; line: smoothed)",
        "Validation: top-1, or mAP of multi-label tasks",
        "Learning rate",
        *[title for title in panels if title == ""],
    ]
    validation = lines(panels["Validation: top-1, or mAP of multi-label tasks"])
    assert list(validation["tones"]) == [40.0, 61.0]
    assert list(validation["mean of tasks"]) == [40.0, 60.5]
    assert np.allclose(lines(panels["Learning rate"])["digits"], history["train/digits/lr"][1])


def test_the_legend_names_each_task_once():
    [legend] = draw_curves(history_of(["digits", "tones"])).legends
    assert [text.get_text() for text in legend.get_texts()] == ["digits", "tones", "mean of tasks"]


def test_a_long_curve_is_thinned_but_keeps_its_last_point():
    at = np.arange(400_001)
    [line] = draw_curves({"train/digits/lr": (at, at * 1.0)}).axes[0].lines
    assert len(line.get_xdata()) < 2100
    assert line.get_xdata()[-1] == 400_000


def test_a_run_without_metrics_still_has_a_picture(tmp_path):
    curves({}, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size[0] > 1000


def test_smoothing_keeps_a_constant_and_passes_over_nan():
    values = np.full(200, 3.0)
    values[50] = np.nan
    values[120] = np.inf
    assert np.allclose(smooth(values), 3.0)


def test_smoothing_takes_out_noise_but_not_the_trend():
    rng = np.random.default_rng(0)
    trend = np.linspace(2, 1, 1000)
    rest = smooth(trend + rng.normal(0, 0.2, 1000)) - trend
    assert rest.std() < 0.05


def test_a_confusion_matrix_is_percent_of_the_true_class():
    axes = draw_confusion(np.array([[8, 2, 0], [0, 5, 5], [0, 0, 0]]), ["up", "left", "down"]).axes[0]
    assert np.allclose(axes.images[0].get_array(), [[80, 20, 0], [0, 50, 50], [0, 0, 0]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["up", "left", "down"]
    assert axes.get_title("left") == "65.0 % of 20 examples are right"
    assert sorted(text.get_text() for text in axes.texts) == ["20", "50", "50", "80"]


@pytest.mark.parametrize("classes", [2, 30, 400])
def test_a_confusion_matrix_of_any_size_is_written_without_a_warning(tmp_path, classes, recwarn):
    confusion(np.eye(classes, dtype=int) * 7, [f"class {n}" for n in range(classes)], tmp_path / "matrix.png")
    width, height = Image.open(tmp_path / "matrix.png").size
    assert 300 < height < width < 1700
    assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]


def test_importing_figures_does_not_import_matplotlib():
    code = "import sys, polytrain.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
