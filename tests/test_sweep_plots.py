"""A task's picture: what is on it."""

import pytest

from polytrain.recipe import check
from polytrain.sweep.outcome import DIVERGED, FINISHED, Ended, Row
from polytrain.sweep.plots import draw_task, task_plot
from polytrain.sweep.points import open_space


@pytest.fixture
def rows(tiny):
    space = open_space(check(tiny | {"grid": {"lr": [0.1, 0.01, 10.0]}}))
    scores = {0.1: 60.0, 0.01: 70.0, 10.0: None}
    return [
        Row(space.point("colours", {"lr": lr}), Ended(FINISHED if score else DIVERGED, score, "r"))
        for lr, score in scores.items()
    ]


def curves(rows):
    return {row.point.fingerprint: {"loss": [(1, 2.0), (2, 1.0)], "val": [(8, row.ended.score or 0)]} for row in rows}


def test_scores_stand_over_the_rates_tried_and_the_winner_is_named(rows):
    scores, losses, vals = draw_task(rows, curves(rows)).axes
    assert [tick.get_text() for tick in scores.get_xticklabels()] == ["0.01", "0.1", "10"]
    assert scores.lines[0].get_xydata()[:2].tolist() == [[0.01, 70.0], [0.1, 60.0]]
    assert [line.get_label() for line in losses.lines] == ["lr=0.1", "lr=0.01 (winner)", "lr=10 (diverged)"]
    assert len(vals.lines) == 3


def test_trials_without_curves_are_drawn_all_the_same(rows, tmp_path):
    task_plot(rows, {}, tmp_path / "figures" / "t.png")
    assert (tmp_path / "figures" / "t.png").read_bytes().startswith(b"\x89PNG")


def test_values_that_are_no_numbers_have_their_names_on_the_axis(tiny):
    space = open_space(check(tiny | {"grid": {"head_init": ["zeros", "lecun_normal"]}}))
    rows = [Row(point, Ended(FINISHED, 50.0, "r")) for point in space.grid() if point.task == "colours"]
    assert len(draw_task(rows, {}).axes) == 3
