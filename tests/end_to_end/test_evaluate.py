"""`jobs/evaluate.py`, whole: a run's own numbers come back, beneath it in MLflow, with everything there is to look at."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from job_runner import Runner, only_run

from small_media import tiny_recipe


@pytest.fixture(scope="module")
def trained(media, tmp_path_factory):
    """A run over several views, and its evaluation: the run's folder, the evaluation's, and what it printed."""
    import yaml

    folder = tmp_path_factory.mktemp("trained")
    runner = Runner(folder)
    recipe = folder / "recipe.yaml"
    tree = tiny_recipe(media, folder / "runs") | {"eval": {"views": {"video": [2, 3], "audio": [2, 1]}}}
    recipe.write_text(yaml.safe_dump(tree))
    runner.run(recipe)
    run = only_run(folder / "runs")
    output = runner.run(run / "final", "splits=test", job="evaluate.py")
    left = runner.processes()
    runner.clean()
    assert not left, left
    (evaluated,) = (folder / "runs").glob("tiny-evaluate-*")
    return run, evaluated, output


@pytest.mark.slow
def test_the_test_split_has_the_runs_own_metrics(trained):
    run, evaluated, output = trained
    own = json.loads((run / "result.json").read_text())["test"]
    found = {one["task"]: one["metrics"] for one in json.loads((evaluated / "result.json").read_text())["outcomes"]}
    assert found.keys() == own.keys()
    for task, metrics in own.items():
        for name, value in metrics.items():
            assert found[task][name] == pytest.approx(value, abs=1e-4), (task, name)
    assert "Traceback" not in output
    assert "Warning" not in output


@pytest.mark.slow
def test_every_example_has_the_logits_that_it_had_in_the_run(trained):
    run, evaluated, _ = trained
    for task in ("colours", "moves", "tones"):
        own, found = (pq.read_table(folder / "predictions" / f"{task}.parquet") for folder in (run, evaluated))
        assert found["path"].to_pylist() == own["path"].to_pylist()
        np.testing.assert_allclose(found["logits"].to_pylist(), own["logits"].to_pylist(), atol=1e-4)


@pytest.mark.slow
def test_mlflow_has_it_beneath_the_training_run(trained):
    from mlflow import MlflowClient

    run, evaluated, output = trained
    training, record = (json.loads((folder / "run.json").read_text()) for folder in (run, evaluated))
    client = MlflowClient(record["uri"])
    logged, own = client.get_run(record["run_id"]).data, client.get_run(training["run_id"]).data
    assert logged.tags["polytrain.kind"] == "evaluate"
    assert logged.tags["polytrain.evaluated_run"] == logged.tags["mlflow.parentRunId"] == training["run_id"]
    assert training["run_id"] in output
    assert logged.metrics["test/tones/mAP"] == pytest.approx(own.metrics["test/tones/mAP"], abs=1e-4)
    assert {"test/moves/ece", "test/moves/balanced_accuracy", "throughput/examples_per_s"} <= set(logged.metrics)
    (metric,) = client.get_metric_history(record["run_id"], "test/moves/top1")
    assert metric.step == 20
    artifacts = {entry.path for entry in client.list_artifacts(record["run_id"])}
    assert {"recipe.yaml", "table.md", "predictions", "per_class", "calibration", "confusion", "mistakes"} <= artifacts
    assert {entry.path for entry in client.list_artifacts(record["run_id"], "calibration")} == {
        "calibration/colours.png", "calibration/moves.png", "calibration/tones.png",
    }  # fmt: skip


@pytest.mark.slow
def test_the_per_class_table_adds_up_to_the_accuracy(trained):
    _, evaluated, _ = trained
    (outcome,) = (
        one for one in json.loads((evaluated / "result.json").read_text())["outcomes"] if one["task"] == "moves"
    )
    with (evaluated / "per_class" / "moves.csv").open() as file:
        rows = list(csv.DictReader(file))
    right = sum(int(row["examples"]) * float(row["recall"]) / 100 for row in rows)
    assert 100 * right / 8 == pytest.approx(outcome["metrics"]["top1"], abs=0.1)
    assert outcome["mistakes"] == 8 - round(right)


@pytest.mark.slow
def test_the_same_question_is_answered_at_once(trained, runner):
    run, _, output = trained
    again = runner.run(run, "splits=test", job="evaluate.py")  # a run's folder means its final checkpoint
    assert "was judged before" in again
    assert again.splitlines()[-12:] == output.splitlines()[-12:]


@pytest.mark.slow
def test_bad_media_are_left_out_and_listed_and_too_many_are_a_failure(runner, checkpoint_of_three, media, tmp_path):
    folder = tmp_path / "bad"
    shutil.copytree(media["image"].parent, folder)
    (folder / "test_001.png").write_bytes(b"no picture")
    asked = (f"tasks.colours.manifest={folder / 'manifest.parquet'}", "tasks=[colours,hues]", "splits=test")
    told = runner.run(checkpoint_of_three, *asked, f"output={tmp_path / 'runs'}", job="evaluate.py", code=1)
    assert "test_001.png: " in told
    assert "colours: 1 of 8 test examples can't be decoded, over data.max_bad_fraction 0.01" in told
    (evaluated,) = (tmp_path / "runs").glob("tiny-evaluate-*")
    (row,) = pq.read_table(evaluated / "quarantine.parquet").to_pylist()
    assert (row["task"], row["split"], row["example"]) == ("colours", "test", 1)
    outcomes = {one["task"]: one for one in json.loads((evaluated / "result.json").read_text())["outcomes"]}
    assert (outcomes["colours"]["metrics"]["examples"], outcomes["colours"]["bad"]) == (7, 1)
    assert (outcomes["hues"]["metrics"]["examples"], outcomes["hues"]["bad"]) == (8, 0)
