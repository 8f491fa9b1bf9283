"""The main job, whole: real Ray, real media, real MLflow (sqlite)."""

import json
import os
import shutil
import signal

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import yaml
from job_runner import Runner, only_run

from small_media import tiny_recipe


def weights(run):
    return safetensors.torch.load_file(run / "final" / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def finished(media, tmp_path_factory):
    """One run from start to end, which others are compared with: its folder and its output."""
    folder = tmp_path_factory.mktemp("finished")
    runner = Runner(folder)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe(media, folder / "runs")))
    output = runner.run(recipe)
    left = runner.processes()
    runner.clean()
    assert not left, left
    return only_run(folder / "runs"), output


def test_a_run_ends_with_a_table_a_model_and_a_record(finished, losses):
    run, output = finished
    # What a person reads
    assert all(word in output for word in ("colours", "moves", "tones", "mAP", "top1", "final", "mlflow ui"))
    assert "Traceback" not in output
    assert "Warning" not in output
    # What is kept
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["test"]["colours"]["examples"] == 8
    assert set(result["test"]["tones"]) == {"mAP", "loss", "examples"}
    assert (run / "final" / "optimizer.pt").exists()
    assert (run / "best" / "model.safetensors").exists()
    assert len(list((run / "checkpoints").glob("step_*"))) == 2
    # What MLflow has
    from mlflow import MlflowClient

    record = json.loads((run / "run.json").read_text())
    client = MlflowClient(record["uri"])
    logged = client.get_run(record["run_id"])
    assert logged.info.status == "FINISHED"
    assert logged.data.params["tasks.colours.lr"] == "0.01"
    assert logged.data.tags["polytrain.kind"] == "cotrain"
    assert {"val/mean", "test/colours/top1", "test/colours/top5", "test/tones/mAP", "throughput/examples_per_s",
            "throughput/data_wait_fraction", "model/params_total", "val/moves/loss"} <= set(logged.data.metrics)  # fmt: skip
    assert {entry.dataset.name for entry in logged.inputs.dataset_inputs} == {"colours", "moves", "tones"}
    artifacts = {entry.path for entry in client.list_artifacts(record["run_id"])}
    assert {"recipe.yaml", "schedule.png", "curves.png", "confusion", "checkpoint"} <= artifacts
    seen = {entry.path for entry in client.list_artifacts(record["run_id"], "inputs")}
    assert seen == {"inputs/colours.png", "inputs/moves.png", "inputs/tones.png"}
    history = losses(run)
    steps = sorted(step for name, values in history.items() if name.startswith("train/") for step, _ in values)
    assert steps == list(range(1, 21))


@pytest.mark.slow
def test_a_finished_recipe_run_again_prints_its_table_and_with_fresh_starts_over(
    finished, runner, recipe_file, tiny, tmp_path
):
    run, _ = finished
    shutil.copytree(run, tmp_path / "runs" / run.name)
    output = runner.run(recipe_file(tiny))
    assert "is finished" in output
    assert "colours" in output
    output = runner.run(recipe_file(tiny), "--fresh")
    assert "is finished" not in output
    first, second = (
        json.loads((folder / "run.json").read_text())["run_id"] for folder in (run, only_run(tmp_path / "runs"))
    )
    assert first != second


def test_two_workers_compute_the_run_of_one(runner, tiny, recipe_file, tmp_path, losses):
    """With mixup, stochastic depth, augmentation, label smoothing and minibatches of 5, 3 and 7, which two workers can't
    share evenly."""
    tiny["tasks"]["colours"] |= {"augment": "randaugment", "label_smoothing": 0.1}
    tiny["tasks"]["moves"]["augment"] = "video"
    tiny["tasks"]["tones"]["augment"] = "audio"
    curves = []
    for workers in (1, 2):
        runner.run(recipe_file(tiny | {"output": str(tmp_path / f"runs{workers}")}), f"train.workers={workers}")
        curves.append(losses(only_run(tmp_path / f"runs{workers}")))
    one, two = curves
    assert one.keys() == two.keys()
    for name in one:
        assert [step for step, _ in one[name]] == [step for step, _ in two[name]]
        assert [value for _, value in one[name]] == pytest.approx([value for _, value in two[name]], abs=1e-4)


@pytest.mark.slow
def test_a_worker_killed_in_mid_run_changes_nothing(runner, tiny, recipe_file, tmp_path, finished, losses):
    run, _ = finished
    other = tmp_path / "killed"
    job = runner.start(recipe_file(tiny), f"output={other}")
    job.until(lambda: list(other.glob("*/checkpoints/step_000000006")))
    (worker,) = runner.named("RayTrainWorker")
    os.kill(worker, signal.SIGKILL)
    assert job.wait() == 0, job.output
    assert "A worker was lost; continuing from step" in job.output
    assert same(weights(run), weights(only_run(other)))
    assert losses(run) == losses(only_run(other))


@pytest.mark.slow
@pytest.mark.parametrize("moment", [pytest.param("start.json", marks=pytest.mark.soak), "checkpoints/step_000000012"])
def test_a_job_killed_at_any_moment_goes_on_to_bitwise_the_same_weights(
    runner, tiny, recipe_file, tmp_path, finished, losses, moment
):
    run, _ = finished
    other = tmp_path / "killed"
    job = runner.start(recipe_file(tiny), f"output={other}")
    job.until(lambda: list(other.glob(f"*/{moment}")))
    job.kill()
    runner.clean()
    first = json.loads((only_run(other) / "run.json").read_text())["run_id"]
    output = runner.run(recipe_file(tiny), f"output={other}")
    if moment != "start.json":
        assert "Continuing from step" in output
    assert same(weights(run), weights(only_run(other)))
    assert json.loads((only_run(other) / "run.json").read_text())["run_id"] == first
    assert losses(run) == losses(only_run(other))


@pytest.mark.slow
def test_being_asked_to_stop_leaves_a_checkpoint_from_which_the_same_command_goes_on(
    runner, tiny, recipe_file, tmp_path, finished
):
    run, _ = finished
    other = tmp_path / "stopped"
    arguments = (recipe_file(tiny), f"output={other}", "train.checkpoint_every=1000")
    job = runner.start(*arguments)
    job.until(lambda: list(other.glob("*/progress.json")))
    os.killpg(job.process.pid, signal.SIGINT)  # as a terminal does: to every process of the job
    assert job.wait() == 130, job.output
    assert "Stopped after step" in job.output
    assert len(list(only_run(other).glob("checkpoints/step_*"))) == 1
    assert "Continuing from step" in runner.run(*arguments)
    assert same(weights(run), weights(only_run(other)))


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(runner, tiny, recipe_file, tmp_path, finished):
    run, _ = finished
    other = tmp_path / "damaged"
    job = runner.start(recipe_file(tiny), f"output={other}")
    job.until(lambda: list(other.glob("*/checkpoints/step_000000012")))
    job.kill()
    runner.clean()
    *_, before, newest = sorted(only_run(other).glob("checkpoints/step_*"))
    damaged = newest / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    output = runner.run(recipe_file(tiny), f"output={other}")
    assert f"{damaged} is damaged" in output
    assert f"Continuing from step {int(before.name.removeprefix('step_'))} of 20" in output
    assert same(weights(run), weights(only_run(other)))


@pytest.mark.slow
def test_bad_media_of_all_modalities_are_replaced_counted_and_listed(runner, tiny, recipe_file, tmp_path, media):
    bad = {}
    for name, task in tiny["tasks"].items():
        folder = tmp_path / "bad" / name
        shutil.copytree(next(p.parent for p in media.values() if str(p) == task["manifest"]), folder)
        task["manifest"] = str(folder / "manifest.parquet")
        victim = sorted(folder.glob("train_003.*"))[0]
        victim.write_bytes(victim.read_bytes()[:40])
        bad[name] = str(victim)
    output = runner.run(recipe_file(tiny), "data.max_bad_fraction=0.2")
    rows = pq.read_table(only_run(tmp_path / "runs") / "quarantine.parquet").to_pylist()
    assert {row["task"]: row["path"] for row in rows} == bad
    assert all(row["reason"] and row["split"] == "train" for row in rows)
    assert "bad media" in output


@pytest.mark.slow
def test_too_many_bad_media_stop_the_run_with_the_list(runner, tiny, recipe_file, tmp_path, media):
    folder = tmp_path / "bad"
    shutil.copytree(media["image"].parent, folder)
    tiny["tasks"]["colours"]["manifest"] = str(folder / "manifest.parquet")
    for victim in sorted(folder.glob("train_*"))[:6]:
        victim.write_bytes(b"")
    output = runner.run(recipe_file(tiny), "tasks.colours.steps=30", code=1)
    assert "training examples can't be decoded, over data.max_bad_fraction 0.01" in output
    assert "train_000.png: " in output or "train_001.png: " in output


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_naming_step_task_and_examples(runner, tiny, recipe_file):
    output = runner.run(recipe_file(tiny), "tasks.moves.lr=1e30", "optimizer.clip_norm=null", code=1)
    assert "step" in output
    assert "became" in output
    assert "Examples [" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_an_unreachable_tracking_server_is_told_and_everything_is_logged_locally(
    runner, tiny, recipe_file, tmp_path, losses
):
    output = runner.run(recipe_file(tiny), "tracking.uri=http://127.0.0.1:9")
    assert "http://127.0.0.1:9" in output
    assert sum(len(values) for name, values in losses(only_run(tmp_path / "runs")).items() if "train/" in name) == 20


@pytest.mark.soak
@pytest.mark.slow
def test_accumulated_gradients_train_too(runner, tiny, recipe_file, tmp_path, losses):
    runner.run(recipe_file(tiny), "schedule=accumulated")
    history = losses(only_run(tmp_path / "runs"))
    assert all([step for step, _ in history[f"train/{task}/loss"]] == list(range(1, 7)) for task in tiny["tasks"])


@pytest.mark.soak
@pytest.mark.slow
def test_a_second_driver_of_the_same_run_is_refused(runner, tiny, recipe_file):
    job = runner.start(recipe_file(tiny))
    job.until(lambda: list(runner.folder.glob("runs/*/run.json")))
    assert "another process is running this recipe" in runner.run(recipe_file(tiny), code=2)
