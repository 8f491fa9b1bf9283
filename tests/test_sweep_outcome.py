"""Who wins, what counts as diverged, and the files a sweep leaves."""

import math

import pyarrow.parquet as pq
import pytest
import yaml

from polytrain.recipe import check
from polytrain.sweep.outcome import (
    CRASHED,
    DIVERGED,
    FINISHED,
    Ended,
    Row,
    ranked,
    time_text,
    winners,
    write_best,
    write_tables,
)
from polytrain.sweep.points import open_space


@pytest.fixture
def space(tiny):
    return open_space(check(tiny | {"grid": {"lr": [0.1, 0.01, 1.0]}}))


def row(space, task, lr, score=None, status=FINISHED, **more):
    return Row(space.point(task, {"lr": lr}), Ended(status, score, f"run-{task}-{lr}", **more))


def result(**loss_and_score):
    return {"status": "finished", "val": {"colours": {"loss": 1.0, "top1": 50.0} | loss_and_score}, "seconds": 3.0}


def test_the_best_validation_wins_and_ties_go_to_the_smaller_rate(space):
    rows = [row(space, "colours", lr, score) for lr, score in ((1.0, 70.0), (0.1, 70.0), (0.01, 60.0))]
    assert [r.point.values["lr"] for r in ranked(rows)] == [0.1, 1.0, 0.01]


def test_a_diverged_trial_is_worse_than_a_score_of_zero(space):
    rows = [row(space, "colours", 0.01, status=DIVERGED), row(space, "colours", 1.0, 0.0)]
    assert winners(rows)["colours"].point.values["lr"] == 1.0


def test_a_task_whose_trials_all_diverged_has_no_winner(space):
    assert winners([row(space, "moves", 0.1, status=DIVERGED)]) == {}


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_at_the_end_is_a_divergence(space, loss):
    point = space.point("colours", {"lr": 0.1})
    assert Ended.of_result(result(loss=loss), point, "r").status == DIVERGED
    assert Ended.of_result(result(), point, "r") == Ended(
        FINISHED, 50.0, "r", seconds=3.0, start_up_s=pytest.approx(math.nan, nan_ok=True)
    )


def test_bad_media_are_an_error_and_no_divergence(space):
    point = space.point("colours", {"lr": 0.1})
    ended = Ended.of_result({"status": "failed", "diverged": False, "message": "too many"}, point, "r")
    assert (ended.status, ended.message) == (CRASHED, "too many")


def test_the_winners_file_names_winner_score_losers_runs_and_recipe(space, tmp_path):
    rows = [row(space, "colours", lr, score) for lr, score in ((0.1, 70.0), (0.01, 60.0))]
    rows.append(row(space, "colours", 1.0, status=DIVERGED))
    file = write_best(space, rows, {"run_id": "s", "tracking_uri": "u"}, tmp_path / "best.yaml")
    tree = yaml.safe_load(file.read_text())
    assert tree["sweep"] == {"run_id": "s", "tracking_uri": "u", "recipe": "tiny", "recipe_digest": space.recipe.digest}
    told = tree["tasks"]["colours"]
    assert (told["values"], told["score"], told["run_id"]) == ({"lr": 0.1}, 70.0, "run-colours-0.1")
    assert [(loser["values"]["lr"], loser["score"], loser["status"]) for loser in told["losers"]] == [
        (0.01, 60.0, FINISHED), (1.0, None, DIVERGED)
    ]  # fmt: skip
    assert told["found_under"]["tasks.colours.steps"] == 8


def test_the_tables_hold_every_trial(space, tmp_path):
    rows = [row(space, "colours", 0.1, 70.0, seconds=2.5), row(space, "moves", 0.1, status=CRASHED, message="why")]
    markdown, parquet = write_tables(rows, tmp_path)
    assert "| colours | 0.1 | top1 | 70.00 | finished | **winner** | 2.5 s |" in markdown.read_text()
    assert [(r["task"], r["lr"], r["score"], r["message"]) for r in pq.read_table(parquet).to_pylist()] == [
        ("colours", 0.1, 70.0, ""), ("moves", 0.1, None, "why")
    ]  # fmt: skip


def test_time_is_compared_with_the_same_steps_one_after_the_other(space):
    rows = [row(space, "colours", 0.1, 70.0, seconds=60.0), row(space, "moves", 0.1, 70.0, seconds=60.0)]
    assert "2 trials ran in 1:20" in time_text(rows, 80.0, "one core")
    assert "take 2:00: 1.5 times as long" in time_text(rows, 80.0, "one core")
