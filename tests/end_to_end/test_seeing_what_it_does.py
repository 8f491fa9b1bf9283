"""What a run shows of itself: `jobs/status.py` while it goes on, and at its end where its time went."""

import json
import re

import pytest
from job_runner import only_run
from mlflow import MlflowClient

pytestmark = pytest.mark.slow

PARTS = ["waiting for data", "computing", "communicating", "checkpointing", "validating and testing"]


def test_a_run_is_seen_from_folder_and_store_and_ends_with_the_shares_of_its_time(runner, tiny, recipe_file, tmp_path):
    for task in tiny["tasks"].values():
        task["steps"] *= 30
    recipe = recipe_file(tiny)
    job = runner.start(recipe, "train.workers=2", "train.eval_every=200")
    job.until(lambda: list((tmp_path / "runs").glob("*/progress.json")))
    run = only_run(tmp_path / "runs")
    job.until(lambda: json.loads((run / "progress.json").read_text())["step"] > 10)
    seen = runner.run(tmp_path / "runs", job="status.py")
    assert re.search(rf"{run.name} +(training|validating) +[\d,]+/600 .*\d s ago", seen), seen
    assert job.wait() == 0, job.output

    (line,) = [line for line in job.output.splitlines() if line.startswith("trained in ")]
    said = [part.split(" % ") for part in line.partition(": ")[2].split(", ")]
    assert [words for _, words in said if words != "figures and all else"] == PARTS
    assert sum(int(share) for share, _ in said) == 100

    result = json.loads((run / "result.json").read_text())
    assert sum(result["spent"].values()) == pytest.approx(result["seconds"], rel=0.1)
    for kind in ("waiting_for_data", "computing", "communicating", "checkpointing", "validating"):
        assert result["spent"][kind] > 0, kind
    record = json.loads((run / "run.json").read_text())
    metrics = MlflowClient(record["uri"]).get_run(record["run_id"]).data.metrics
    assert sum(value for name, value in metrics.items() if name.startswith("time/")) == pytest.approx(100)

    seen = runner.run(record["uri"], job="status.py")  # as another machine would see it
    assert re.search(rf"{run.name} +finished +600/600", seen), seen
