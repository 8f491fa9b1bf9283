"""Streams on real Ray: every minibatch, in the plan's order, through turn-overs, for one worker and two."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from polytrain.experiment import open_experiment
from polytrain.recipe import check

SCRIPT = Path(__file__).parent / "take_streams.py"


@pytest.fixture
def taken(runner, tiny, tmp_path):
    """Takes all streams of the tiny recipe; returns what each rank got by modality, and the most memory in use."""
    recipe = tmp_path / "recipe.yaml"

    def take(workers, stretch_tasks, *, memory_budget=200_000_000, first_step=0):
        recipe.write_text(yaml.safe_dump(tiny))
        command = [SCRIPT, recipe, workers, stretch_tasks, memory_budget, first_step, tmp_path]
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


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_stretches_of_five_read_tasks_bring_all_minibatches_in_order(taken, tiny, workers):
    tiny["tasks"]["colours"]["steps"] = 150
    plan = open_experiment(check(tiny))[0].plan
    by_rank, _ = taken(workers, 5, first_step=3)
    for modality in ("image", "video", "audio"):
        timeline = plan.timeline(modality, 3)
        assert len(timeline) > 2 * 5 or modality != "image"
        for rank, of_rank in enumerate(by_rank):
            expected = [[m.tag.phase, str(m.tag.step), m.ids[plan.share(m, rank, workers)].tolist()] for m in timeline]
            assert of_rank[modality] == expected
