"""Sweeps, whole: real Ray Tune and Optuna, real media, real MLflow (sqlite)."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from job_runner import Runner

from polytrain.recipe import check
from polytrain.sweep.points import make_point
from small_media import tiny_recipe

GRID = "grid.lr=[0.01,0.1]"
pytestmark = pytest.mark.slow


def sweep(runner, *arguments, code=0):
    return runner.run(*arguments, job="sweep.py", code=code)


def sweep_folder(output: Path) -> Path:
    (folder,) = output.glob("*-sweep-*")
    return folder


def runs(output: Path, kind: str, experiment: str = "tiny") -> list:
    """All runs of a kind, oldest first, as MLflow has them."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    found = client.get_experiment_by_name(experiment)
    return client.search_runs(
        [found.experiment_id], f"tags.`polytrain.kind` = '{kind}'", order_by=["attributes.start_time ASC"]
    )


def artifacts(output: Path, run) -> set[str]:
    from mlflow import MlflowClient

    return {entry.path for entry in MlflowClient(f"sqlite:///{output / 'mlflow.db'}").list_artifacts(run.info.run_id)}


@pytest.fixture(scope="module")
def swept(media, tmp_path_factory):
    """One sweep of three tasks at two rates, which others go on from: its recipe, output folder and what it printed."""
    folder = tmp_path_factory.mktemp("swept")
    runner = Runner(folder)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe(media, folder / "runs")))
    output = sweep(runner, recipe, GRID)
    left = runner.processes()
    runner.clean()
    assert not left, left
    return recipe, folder / "runs", output


def test_every_point_is_a_nested_run_and_the_parent_carries_table_plots_and_winners(swept):
    _, output, printed = swept
    (parent,) = runs(output, "sweep")
    trials = runs(output, "trial")
    assert parent.info.status == "FINISHED"
    assert {(t.data.tags["polytrain.task"], t.data.params[f"tasks.{t.data.tags['polytrain.task']}.lr"]) for t in trials} == {
        (task, lr) for task in ("colours", "moves", "tones") for lr in ("0.01", "0.1")
    }  # fmt: skip
    assert {t.data.tags["mlflow.parentRunId"] for t in trials} == {parent.info.run_id}
    assert {t.info.status for t in trials} == {"FINISHED"}
    assert {"table.md", "table.parquet", "best_hparams.yaml", "colours.png", "moves.png", "tones.png"} <= artifacts(
        output, parent
    )
    best = yaml.safe_load((sweep_folder(output) / "best_hparams.yaml").read_text())["tasks"]
    for task, winner in best.items():
        scores = {t.info.run_id: t.data.metrics[f"val/{task}/{winner['metric']}"] for t in trials
                  if t.data.tags["polytrain.task"] == task}  # fmt: skip
        assert winner["score"] == max(scores.values()) == scores[winner["run_id"]]
        assert f"{task}: lr=" in printed
    assert "one after the other" in printed
    assert "Traceback" not in printed


def test_a_trial_costs_little_beyond_its_steps_once_the_first_has_run(swept):
    """At most 3 s on an idle machine; tests run on busy ones."""
    table = pq.read_table(sweep_folder(swept[1]) / "table.parquet").to_pylist()
    assert sorted(row["start_up_s"] for row in table)[len(table) // 2] < 6


@pytest.mark.soak
def test_a_trial_learns_what_a_co_training_of_its_one_task_learns(swept, runner, recipe_file, tiny, tmp_path, losses):
    """The same loop: the same losses, step by step."""
    tiny["tasks"] = {"colours": tiny["tasks"]["colours"] | {"lr": 0.1}}
    runner.run(recipe_file(tiny))
    (alone,) = (path.parent for path in (tmp_path / "runs").glob("*/recipe.yaml"))
    (trial,) = (
        path.parent
        for path in (swept[1] / "trials").glob("colours-*/trial.json")
        if json.loads(path.read_text())["values"]["lr"] == 0.1
    )
    assert losses(trial)["train/colours/loss"] == losses(alone)["train/colours/loss"]


def test_a_widened_grid_runs_only_what_is_new_and_a_repeat_nothing(swept, runner, tmp_path):
    recipe, output, _ = swept
    before = {run.info.run_id for run in runs(output, "trial")}
    began = time.monotonic()
    printed = sweep(runner, recipe, GRID)
    assert time.monotonic() - began < 40
    assert "6 of them are done already" in printed
    assert {run.info.run_id for run in runs(output, "trial")} == before
    printed = sweep(runner, recipe, "grid.lr=[0.01,0.1,0.2]", "tasks=[moves]")
    assert "1 trials ran" in printed
    after = runs(output, "trial")
    assert len(after) == len(before) + 1
    parent = runs(output, "sweep")[-1]
    linked = {value for key, value in parent.data.tags.items() if key.startswith("polytrain.trial.moves.")}
    assert linked == {run.info.run_id for run in after if run.data.tags["polytrain.task"] == "moves"}


@pytest.mark.soak
def test_another_output_folder_finds_finished_trials_in_mlflow(swept, runner, tmp_path):
    recipe, output, _ = swept
    store = f"tracking.uri=sqlite:///{output / 'mlflow.db'}"
    printed = sweep(runner, recipe, "tasks=[tones]", GRID, store, f"output={tmp_path / 'other'}")
    assert "2 of them are done already" in printed
    assert (sweep_folder(tmp_path / "other") / "figures" / "tones.png").exists()
    assert not (tmp_path / "other" / "trials").exists()


def test_co_training_takes_the_winners_and_links_back(swept, runner, tmp_path):
    recipe, output, _ = swept
    best = yaml.safe_load(next(output.glob("*-sweep-*/best_hparams.yaml")).read_text())["tasks"]
    printed = runner.run(recipe, "hparams=latest")
    run = runs(output, "cotrain")[-1]
    for task, winner in best.items():
        assert run.data.params[f"tasks.{task}.lr"] == f"{winner['values']['lr']}"
        assert run.data.tags[f"polytrain.hparams.{task}"] == winner["run_id"]
        assert run.data.params[f"hparams.tasks.{task}.run_id"] == winner["run_id"]
        assert winner["run_id"] in printed
    saved = next(path for path in output.glob("tiny-*/recipe.yaml") if "-sweep-" not in str(path))
    assert "latest" not in yaml.safe_load(saved.read_text())["hparams"]
    assert "is finished" in runner.run(saved)


def test_a_sweep_killed_in_the_middle_finishes_only_what_is_missing(runner, tiny, recipe_file, tmp_path):
    recipe, output = recipe_file(tiny), tmp_path / "runs"
    job = runner.start(recipe, GRID, "tasks=[moves,tones]", "sweep.concurrent=1", job="sweep.py")
    job.until(lambda: len(list(output.glob("trials/*/result.json"))) >= 1)
    job.until(lambda: len(list(output.glob("trials/*/run.json"))) >= 2)
    job.kill()
    runner.clean()
    begun = {run.info.run_id for run in runs(output, "trial")}
    finished = {str(path): path.read_text() for path in output.glob("trials/*/result.json")}
    sweep(runner, recipe, GRID, "tasks=[moves,tones]")
    after = runs(output, "trial")
    assert len(after) == 4
    assert begun <= {run.info.run_id for run in after}
    assert {run.info.status for run in after} == {"FINISHED"}
    assert len(runs(output, "sweep")) == 1
    for path, content in finished.items():
        assert json.loads(Path(path).read_text())["seconds"] == json.loads(content)["seconds"]


@pytest.mark.soak
def test_a_sweep_asked_to_stop_stops_and_goes_on_with_the_same_command(runner, tiny, recipe_file, tmp_path):
    output = tmp_path / "runs"
    tiny["tasks"]["colours"]["steps"] = 4000
    arguments = (recipe_file(tiny), "grid.lr=[0.01]", "tasks=[colours]")
    job = runner.start(*arguments, job="sweep.py")
    job.until(lambda: any(json.loads(p.read_text())["step"] > 20 for p in output.glob("trials/*/progress.json")))
    os.kill(job.process.pid, signal.SIGTERM)  # as `ray job stop` does
    assert job.wait() == 130, job.output
    assert "Stopped with 0 of 1 trials done" in job.output
    newest = max(output.glob("trials/*/checkpoints/step_*")).name
    sweep(runner, *arguments)
    (trial,) = runs(output, "trial")
    assert trial.info.status == "FINISHED"
    start = json.loads(next(output.glob("trials/*/start.json")).read_text())
    assert start["step"] == int(newest.removeprefix("step_"))


def test_diverging_and_crashing_trials_are_recorded_and_the_others_win(runner, tiny, recipe_file, tmp_path):
    tiny["optimizer"]["clip_norm"] = None
    crashing = make_point(check(tiny), "colours", {"lr": 0.02})
    (crashing.folder / "start.json").mkdir(parents=True)  # where the loop wants to write a file
    printed = sweep(runner, recipe_file(tiny), "tasks=[colours]", "grid.lr=[0.01,0.02,1e30]")
    rows = {row["lr"]: row for row in pq.read_table(sweep_folder(tmp_path / "runs") / "table.parquet").to_pylist()}
    assert {lr: row["status"] for lr, row in rows.items()} == {
        0.01: "finished",
        0.02: "failed",
        1e30: "failed-diverged",
    }
    assert "colours: lr=0.01 wins" in printed
    recorded = {run.data.tags["polytrain.status"]: run for run in runs(tmp_path / "runs", "trial")}
    assert recorded["failed-diverged"].info.status == recorded["failed"].info.status == "FAILED"
    assert "became" in recorded["failed-diverged"].data.tags["polytrain.error"]
    assert "start.json" in recorded["failed"].data.tags["polytrain.error"]
    # The same command tries again what crashed, and nothing else.
    (crashing.folder / "start.json").rmdir()
    printed = sweep(runner, recipe_file(tiny), "tasks=[colours]", "grid.lr=[0.01,0.02,1e30]")
    assert "1 trials ran" in printed
    assert len(runs(tmp_path / "runs", "trial")) == 3


@pytest.mark.soak
def test_a_trial_whose_process_dies_is_run_once_more(runner, tiny, recipe_file, tmp_path):
    tiny["tasks"]["colours"]["steps"] = 1000
    output = tmp_path / "runs"
    job = runner.start(recipe_file(tiny), "tasks=[colours]", "grid.lr=[0.01]", job="sweep.py")
    job.until(lambda: any(json.loads(p.read_text())["step"] > 20 for p in output.glob("trials/*/progress.json")))
    (process,) = runner.named("Trainable")
    os.kill(process, signal.SIGKILL)
    assert job.wait() == 0, job.output
    (trial,) = runs(output, "trial")
    assert trial.info.status == "FINISHED"


@pytest.fixture
def server(tmp_path, runner):
    """An MLflow server that can be stopped and started again; its address and its database."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        port = opened.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}",
               "--default-artifact-root", str(tmp_path / "artifacts"), "--port", str(port), "--workers", "1"]  # fmt: skip
    processes = []

    def start():
        with (tmp_path / "server.log").open("a") as out:
            processes.append(
                subprocess.Popen(command, env=runner.environment, stdout=out, stderr=out, start_new_session=True)
            )
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.1)
        pytest.fail((tmp_path / "server.log").read_text())

    def stop():
        while processes:
            os.killpg(processes.pop().pid, signal.SIGKILL)

    start()
    yield f"http://127.0.0.1:{port}", start, stop
    stop()


@pytest.mark.soak
def test_while_mlflow_is_away_nothing_is_lost(runner, tiny, recipe_file, tmp_path, server):
    uri, start, stop = server
    output = tmp_path / "runs"
    tiny["tracking"] = {"uri": uri}
    job = runner.start(recipe_file(tiny), GRID, "tasks=[moves,tones]", "sweep.concurrent=1", job="sweep.py")
    job.until(lambda: len(list(output.glob("trials/*/result.json"))) >= 1, 180)
    stop()
    job.until(lambda: len(list(output.glob("trials/*/result.json"))) >= 3, 180)
    start()
    assert job.wait(240) == 0, job.output
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'server.db'}")
    experiment = client.get_experiment_by_name("tiny").experiment_id
    trials = client.search_runs([experiment], "tags.`polytrain.kind` = 'trial'")
    (parent,) = client.search_runs([experiment], "tags.`polytrain.kind` = 'sweep'")
    assert {t.data.tags["mlflow.parentRunId"] for t in trials} == {parent.info.run_id}
    assert [t.info.status for t in (*trials, parent)] == ["FINISHED"] * 5
    for trial in trials:
        task = trial.data.tags["polytrain.task"]
        history = client.get_metric_history(trial.info.run_id, f"train/{task}/loss")
        assert [m.step for m in history] == list(range(1, 1 + tiny["tasks"][task]["steps"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["grid.lr=[]"], "grid.lr: is empty"),
        (["grid.lrr=[0.1]"], "did you mean lr?"),
        (["tasks=[color]"], "did you mean colours?"),
        (["grid.lr=[-1]"], "input should be greater than 0"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(runner, tiny, recipe_file, tmp_path, words, message):
    assert message in sweep(runner, recipe_file(tiny), *words, code=2)
    assert not (tmp_path / "runs").exists()
