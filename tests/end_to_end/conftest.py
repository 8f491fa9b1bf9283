"""A runner of jobs for each test, streams taken as training takes them, and MLflow's own view of what was logged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from job_runner import Runner

SCRIPT = Path(__file__).parent / "take_streams.py"


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


@pytest.fixture
def taken(runner, tiny, tmp_path):
    """Takes all streams of the tiny recipe; returns what each rank got by modality, and the most memory in use."""
    recipe = tmp_path / "recipe.yaml"

    def take(workers, stretch_tasks, *, memory_budget=200_000_000, first_step=0, pause_s=0.0):
        recipe.write_text(yaml.safe_dump(tiny))
        command = [SCRIPT, recipe, workers, stretch_tasks, memory_budget, first_step, pause_s, tmp_path]
        log = tmp_path / "log"
        with log.open("w") as out:
            code = subprocess.run(
                [sys.executable, *map(str, command)],
                env=runner.environment, stdout=out, stderr=out, timeout=180, check=False,
            ).returncode  # fmt: skip
        assert code == 0, log.read_text()
        by_rank = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(workers)]
        return by_rank, json.loads((tmp_path / "most.json").read_text())["bytes"]

    return take
