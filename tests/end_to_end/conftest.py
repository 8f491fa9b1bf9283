"""A runner of jobs for each test, and MLflow's own view of what they logged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from job_runner import Runner


@pytest.fixture
def runner(tmp_path):
    if not Path("/proc").exists():
        pytest.fail("these tests look at processes through /proc: run them on Linux")
    runner = Runner(tmp_path)
    yield runner
    runner.clean()


@pytest.fixture
def losses():
    """The training losses of a run in the order of steps, read from MLflow itself."""

    def read(run_folder: Path) -> dict[str, list[tuple[int, float]]]:
        from mlflow import MlflowClient

        record = json.loads((run_folder / "run.json").read_text())
        client = MlflowClient(record["uri"])
        names = [name for name in client.get_run(record["run_id"]).data.metrics if name.endswith("/loss")]
        return {
            name: [(m.step, m.value) for m in client.get_metric_history(record["run_id"], name)]
            for name in sorted(names)
        }

    return read
