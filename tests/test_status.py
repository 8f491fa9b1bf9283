"""What `jobs/status.py` makes of run folders and of MLflow: real folders, a real store."""

import json
import os
import time

import pytest

from polytrain import status
from polytrain.run_folder import RunFolder
from polytrain.status import in_folder, in_mlflow, merged, status_command, text
from polytrain.tracking import Tracker

PROGRESS = {
    "phase": "train", "step": 400, "steps": 1000, "best": 71.25, "seconds": 20.0, "steps_here": 200, "attempt": 1,
    "since": 200, "examples_per_s": 160.0, "data_wait_fraction": 0.1,
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A run's folder in an output folder."""
    (tmp_path / "runs" / "sample-1").mkdir(parents=True)
    return RunFolder(tmp_path / "runs" / "sample-1")


def only(run, now=None):
    (found,) = in_folder(str(run.path.parent), time.time() if now is None else now)
    return found


# --- from a folder ------------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_says_how_far_how_fast_and_until_when(run):
    run.write_progress(PROGRESS)
    found = only(run)
    assert (found.name, found.state, found.step, found.steps) == ("sample-1", "training", 400, 1000)
    assert (found.rate, found.left_s, found.examples_per_s, found.best) == (10.0, 60.0, 160.0, 71.25)


def test_the_table_reads_like_this(run):
    run.write_progress(PROGRESS)
    now = run.progress()["written"] + 3
    assert text([only(run, now)], now) == "\n".join(
        [
            "run       state     step       steps/s  examples/s  left  best val  last heard",
            "--------  --------  ---------  -------  ----------  ----  --------  ----------",
            "sample-1  training  400/1,000       10         160  1:00      71.2  3 s ago",
        ]
    )


def test_a_run_that_tells_nothing_for_a_minute_is_silent_and_has_no_end_in_sight(run):
    run.write_progress(PROGRESS)
    found = only(run, time.time() + 70)
    assert (found.state, found.left_s) == ("silent", None)
    assert "killed, cut off" in text([found], time.time())


def test_a_run_with_long_steps_may_be_quiet_for_longer(run):
    run.write_progress(PROGRESS | {"steps_here": 2})
    assert only(run, time.time() + 150).state == "training"
    assert only(run, time.time() + 250).state == "silent"


def test_a_run_without_a_step_is_starting(run):
    run.write_start(0, None)
    assert only(run).state == "starting"
    assert only(run, time.time() + 70).state == "silent"


@pytest.mark.parametrize(("phase", "said"), [("val", "validating"), ("test", "testing"), ("trials", "sweeping")])
def test_what_it_does_is_said_in_words(run, phase, said):
    run.write_progress(PROGRESS | {"phase": phase})
    assert only(run).state == said


def test_lost_workers_and_passed_over_checkpoints_are_told(run):
    for faults in ((), (), ("step_000000300 is damaged",)):
        run.write_start(200, None, faults)
    run.write_progress(PROGRESS | {"attempt": 3})
    assert only(run).fault == (
        "step_000000300 is damaged; a worker was lost 2 times; since then it goes on from step 200"
    )


def test_a_failed_run_says_why_in_a_line(run):
    run.write_progress(PROGRESS)
    run.write_result({"status": "failed", "step": 412, "message": "step 413: the loss became nan\nmore\nand more"})
    found = only(run)
    assert (found.state, found.step, found.left_s) == ("failed", 412, None)
    assert text([found], time.time()).endswith("sample-1: step 413: the loss became nan ...")


def test_a_finished_run_has_no_time_left(run):
    run.write_progress(PROGRESS)
    run.write_result({"status": "finished", "step": 1000})
    found = only(run)
    assert (found.state, found.step, found.left_s, found.fault) == ("finished", 1000, None, "")


def test_a_torn_progress_file_is_no_crash(run):
    run.write_start(0, None)
    (run.path / "progress.json").write_text('{"step": 4')
    assert only(run).state == "starting"


def test_a_runs_own_folder_will_do(run):
    run.write_progress(PROGRESS)
    (found,) = in_folder(str(run.path), time.time())
    assert found.name == "sample-1"


def test_of_trials_only_those_that_go_on_are_shown(run):
    for name, ended in (("colours-1", True), ("colours-2", False)):
        trial = RunFolder(run.path.parent / "trials" / name)
        trial.path.mkdir(parents=True)
        trial.write_progress(PROGRESS)
        if ended:
            trial.write_result({"status": "finished", "step": 1000})
    assert [found.name for found in in_folder(str(run.path.parent), time.time())] == ["trials/colours-2"]


def test_what_is_no_run_is_passed_over(run):
    (run.path.parent / "mlartifacts" / "1").mkdir(parents=True)
    (run.path.parent / "notes").mkdir()
    assert list(in_folder(str(run.path.parent), time.time())) == []


def test_runs_in_a_store_are_seen(s3, run):
    from polytrain.run_folder import open_run

    place = f"{s3.bucket()}/runs"
    stored = open_run(f"{place}/far-1")
    stored._write("progress.json", PROGRESS | {"written": time.time()})
    (found,) = in_folder(place, time.time())
    assert (found.name, found.state, found.step) == ("far-1", "training", 400)


# --- from MLflow --------------------------------------------------------------------------------------------------


def tracked(run, uri, kind="cotrain"):
    return Tracker.open(
        run.path, uri=uri, fallback_uri=uri, experiment="e", run_name=run.path.name, tags={"polytrain.kind": kind}
    )


@pytest.fixture
def store(tmp_path):
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_mlflow_alone_tells_the_same(run, store):
    run.write_progress(PROGRESS)
    tracker = tracked(run, store)
    tracker.progress(PROGRESS)
    tracker.detach()
    (found,) = in_mlflow(store, time.time(), 10)
    folder = only(run)
    assert (found.name, found.state, found.step, found.rate, found.left_s, found.best, found.run_id) == (
        folder.name, folder.state, folder.step, folder.rate, folder.left_s, folder.best, folder.run_id,
    )  # fmt: skip
    assert in_mlflow(store, time.time() + 200, 10).__next__().state == "silent"


def test_mlflow_hears_of_progress_now_and_then_only(run, store):
    tracker = tracked(run, store)
    for step in (1, 2, 3):
        tracker.progress(PROGRESS | {"step": step})
    tracker.progress(PROGRESS | {"step": 4}, force=True)
    tracker.detach()
    lines = [json.loads(line) for line in (run.path / "journal.jsonl").read_text().splitlines()]
    told = [
        json.loads(line["tags"]["polytrain.progress"])["step"] for line in lines if "polytrain.progress" in str(line)
    ]
    assert told == [1, 4]


def test_mlflow_tells_why_a_run_failed(run, store):
    tracker = tracked(run, store)
    tracker.tags({"polytrain.error": "step 3: the loss became nan\nat length"})
    tracker.close("FAILED")
    (found,) = in_mlflow(store, time.time(), 10)
    assert (found.state, found.fault) == ("failed", "step 3: the loss became nan ...")


def test_runs_that_tell_no_steps_are_running(run, store):
    tracked(run, store, kind="evaluate").detach()
    (found,) = in_mlflow(store, time.time(), 10)
    assert (found.state, found.step) == ("running", None)


def test_other_peoples_runs_in_the_store_are_left_out(run, store):
    from mlflow import MlflowClient

    tracked(run, store).detach()
    MlflowClient(store).create_run("0")
    assert [found.name for found in in_mlflow(store, time.time(), 10)] == ["sample-1"]


# --- together -----------------------------------------------------------------------------------------------------


def test_a_run_that_both_tell_of_is_shown_once_as_the_later_word_has_it(run, store):
    tracker = tracked(run, store)
    tracker.progress(PROGRESS | {"step": 300})
    tracker.detach()
    time.sleep(0.01)
    run.write_progress(PROGRESS)
    now = time.time()
    both = [*in_folder(str(run.path.parent), now), *in_mlflow(store, now, 10)]
    assert [found.step for found in both] == [400, 300]
    assert [found.step for found in merged(both)] == [400]


def some(state, told, name="x"):
    return status.Status(name, state, told)


def test_what_goes_on_comes_first_then_what_is_silent_then_what_ended():
    found = merged([some("finished", 9.0), some("silent", 8.0), some("training", 1.0), some("validating", 2.0)])
    assert [of.state for of in found] == ["validating", "training", "silent", "finished"]


def test_what_ended_long_ago_is_counted_and_shown_with_all():
    now = 1e9
    found = merged([some("finished", now - age, f"run{age}") for age in range(14)] + [some("silent", now - 8 * 86400)])
    assert text(found, now).endswith("5 more that ended, or fell silent, earlier: --all shows them")
    assert "run13" not in text(found, now)
    assert "run13" in text(found, now, everything=True)


# --- the command --------------------------------------------------------------------------------------------------


def test_without_a_place_it_looks_into_runs_and_the_tracking_server(run, store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run.write_progress(PROGRESS)
    other = RunFolder(tmp_path / "elsewhere" / "far-2")
    other.path.mkdir(parents=True)
    tracked(other, store).detach()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert status_command("", []) == 0
    out = capsys.readouterr().out
    assert "sample-1" in out
    assert "far-2" in out


def test_a_server_that_does_not_answer_is_named_without_its_password_and_the_rest_is_shown(run, capsys):
    run.write_progress(PROGRESS)
    assert status_command("", ["http://me:hush@127.0.0.1:9", str(run.path.parent)]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("error: http://***@127.0.0.1:9: no connection")
    assert "hush" not in out + err
    assert "sample-1" in out


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("s3://bucket/x?secret_key=planted-secret", "s3://bucket/x?secret_key=***: "),
        ("s3://AKIA:planted/secret@bucket/photos", "s3://***@bucket/photos: "),
        ("http://127.0.0.1:9/?token=planted-secret", "http://127.0.0.1:9/?token=***: "),
        ("planted.db?access_key=planted-secret", "planted.db?access_key=***: "),
    ],
)
def test_a_place_that_holds_a_key_is_named_without_it(place, told, capsys):
    assert status_command("", [place]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {told}")
    assert "secret" not in (out + err).replace("secret_key", "")


def test_what_another_machine_wrote_of_a_failure_is_shown_without_secrets(run, monkeypatch, capsys):
    monkeypatch.setenv("DB_PASS", "hunter2")
    (run.path / "result.json").write_text(json.dumps({"status": "failed", "message": "login hunter2 failed"}))
    assert status_command("", [str(run.path)]) == 0
    assert "login *** failed" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_an_error(tmp_path, capsys):
    assert status_command("", [str(tmp_path / "nowhere")]) == 2
    assert "nowhere: there is no such folder" in capsys.readouterr().err


def test_a_database_that_is_not_there_is_not_made(tmp_path, capsys):
    assert status_command("", [f"sqlite:///{tmp_path / 'no.db'}"]) == 2
    assert not os.path.exists(tmp_path / "no.db")


def test_an_empty_folder_has_no_runs(tmp_path, capsys):
    assert status_command("", [str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"
