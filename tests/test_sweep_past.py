"""Trials that MLflow has already, and those that were recorded elsewhere while it was away."""

import json

import pytest

from polytrain.recipe import check
from polytrain.sweep.outcome import DIVERGED, FINISHED
from polytrain.sweep.past import delivered, ended_run, in_mlflow, observed, on_disk
from polytrain.sweep.points import open_space
from polytrain.sweep.trial import record_end
from polytrain.tracking import AwayError, Finder, Tracker, move


@pytest.fixture
def store(tmp_path):
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def space(tiny):
    return open_space(check(tiny | {"search": {"sampler": "tpe", "trials": 4, "lr": [0.001, 1.0]}}))


@pytest.fixture
def trial(space, store, tmp_path):
    """Records a trial of `colours` in the store; returns its point."""

    def write(lr, status=FINISHED, top1=50.0, **more):
        point = space.point("colours", {"lr": lr})
        tags = {"polytrain.kind": "trial", "polytrain.task": "colours", "polytrain.fingerprint": point.fingerprint}
        tracker = Tracker.open(
            point.folder, uri=store, fallback_uri=store, experiment="any", run_name="t", tags=tags | more,
            params={"tasks.colours.lr": point.recipe.tasks["colours"].lr},
        )  # fmt: skip
        tracker.metrics({"val/colours/top1": top1}, step=8)
        ending = ended_run(point, _run(tracker.run_id, status))
        record_end(tracker, ending)
        return point

    return write


def _run(run_id, status):
    from polytrain.tracking import FoundRun

    return FoundRun(run_id, "t", status, 0, {"polytrain.status": status}, {}, {"val/colours/top1": 50.0})


def test_finished_and_diverged_trials_are_found_by_fingerprint_in_any_experiment(trial, store):
    fine, bad = trial(0.1), trial(0.5, status=DIVERGED)
    found = in_mlflow(Finder(store), ["colours", "moves"])
    assert set(found) == {fine.fingerprint, bad.fingerprint}
    assert ended_run(fine, found[fine.fingerprint]).score == 50.0
    assert (ended_run(bad, found[bad.fingerprint]).status, ended_run(bad, found[bad.fingerprint]).score) == (
        DIVERGED,
        None,
    )


def test_a_search_counts_trials_within_its_range_that_mlflow_has(trial, space, store):
    inside = trial(0.1)
    trial(2.0)
    colours = next(t for t in space.tasks if t.task == "colours")
    for folder in inside.folder.parent.iterdir():
        (folder / "trial.json").unlink(missing_ok=True)
    runs = in_mlflow(Finder(store), ["colours"])
    assert [p.fingerprint for p in observed(space, colours, runs)] == [inside.fingerprint]


def test_a_trial_that_ended_is_known_from_its_folder_too(trial):
    point = trial(0.1)
    assert on_disk(point) is None
    result = {"status": "finished", "val": {"colours": {"top1": 40.0, "loss": 1.0}}, "seconds": 2.0}
    (point.folder / "result.json").write_text(json.dumps(result))
    assert on_disk(point).score == 40.0
    (point.folder / "result.json").write_text(json.dumps({"status": "failed", "message": "crashed"}))
    assert on_disk(point) is None  # to be tried again


def test_a_store_that_does_not_answer_is_told(tmp_path):
    with pytest.raises(AwayError):
        in_mlflow(Finder("http://127.0.0.1:9"), ["colours"])


def test_a_trial_recorded_elsewhere_while_mlflow_was_away_comes_to_its_parent(tmp_path, store):
    local = f"sqlite:///{tmp_path / 'local.db'}"
    folder = tmp_path / "run"
    tracker = Tracker.open(folder, uri="http://127.0.0.1:9", fallback_uri=local, experiment="e", run_name="t")
    tracker.metrics({"val/colours/top1": 50.0}, step=8)
    tracker.end("FINISHED")
    assert delivered(folder)
    moved = move(folder, store, "parent")
    assert not delivered(folder)
    assert Tracker.resume(folder).detach()
    run = Finder(store).run(moved)
    assert (run.status, run.metrics["val/colours/top1"]) == ("FINISHED", 50.0)
    assert run.tags["mlflow.parentRunId"] == "parent"
