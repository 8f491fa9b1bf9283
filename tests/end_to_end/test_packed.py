"""Packed collections on real Ray: every example once a pass, and a run killed in the middle goes on the same."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from job_runner import only_run

from polytrain.data import manifest
from polytrain.data.packed import packed_splits
from polytrain.experiment import open_experiment
from polytrain.ingest import prepare_command
from polytrain.recipe import check

WINDOW = 3


@pytest.fixture
def packed(tiny, tmp_path):
    """The tiny recipe over packed collections: shards of about six examples in row groups of three."""
    for name, task in tiny["tasks"].items():
        train = Path(task["manifest"]).parent.glob("train_*")
        size = sum(path.stat().st_size for path in train) // 8
        out = tmp_path / "packed" / name
        words = ["pack", task["manifest"], "--out", str(out), "--group-size", str(size), "--shard-size", str(2 * size)]
        assert prepare_command("", words) == 0
        task["manifest"] = str(out / "manifest.parquet")
        assert len(packed_splits(manifest.read(task["manifest"]))["train"].sizes) > 2 * WINDOW
    tiny["data"] = {"shuffle_window": WINDOW}
    return tiny


@pytest.mark.slow
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_streams_of_packed_collections_bring_every_example_once_a_pass_in_the_plans_order(taken, packed, workers):
    first_step = 7
    for task in packed["tasks"].values():
        task["steps"] = -(-3 * 24 // task["batch_size"])  # three passes
    plan = open_experiment(check(packed))[0].plan
    by_rank, _ = taken(workers, 1000, first_step=first_step)
    for number, (task, planned) in enumerate(zip(packed["tasks"].values(), plan.tasks, strict=True)):
        streams = [of_rank[task["modality"]] for of_rank in by_rank]
        timeline = plan.timeline(task["modality"], first_step)
        for rank, stream in enumerate(streams):
            expected = [[m.tag.phase, str(m.tag.step), m.ids[plan.share(m, rank, workers)].tolist()] for m in timeline]
            assert stream == expected
        # By position in the walk, whoever got it.
        walk = np.full(task["steps"] * task["batch_size"], -1)
        for place, minibatch in enumerate(timeline):
            for rank, stream in enumerate(streams):
                if minibatch.tag.phase == "train":
                    walk[minibatch.positions[plan.share(minibatch, rank, workers)]] = stream[place][2]
        begun = planned.batch_size * sum(plan.train(step).tag.task == number for step in range(first_step))
        assert (walk[:begun] == -1).all()
        size = planned.sizes["train"]
        passes = [walk[begin:end] for begin, end in pairwise(range(0, len(walk) + 1, size)) if begin >= begun]
        assert passes
        assert all(sorted(of_pass) == list(range(size)) for of_pass in passes)
        # And a row group's examples come within a window of one another.
        groups = packed_splits(manifest.read(task["manifest"]))["train"]
        for of_pass in passes:
            of_group = np.array([groups.find(example)[0] for example in of_pass])
            spread = [np.ptp(np.flatnonzero(of_group == group)) for group in range(len(groups.sizes))]
            assert max(spread) < WINDOW * groups.sizes.max()


@pytest.mark.soak
@pytest.mark.slow
def test_a_run_over_packed_collections_killed_in_the_middle_goes_on_to_bitwise_the_same_weights(
    runner, packed, recipe_file, tmp_path, losses
):
    recipe = recipe_file(packed)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    runner.run(recipe, f"output={whole}")
    job = runner.start(recipe, f"output={killed}")
    job.until(lambda: list(killed.glob("*/checkpoints/step_000000012")))
    job.kill()
    runner.clean()
    assert not list(killed.glob("*/result.json"))
    assert "Continuing from step" in runner.run(recipe, f"output={killed}")
    one, other = (safetensors.torch.load_file(only_run(out) / "final" / "model.safetensors") for out in (whole, killed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert losses(only_run(whole)) == losses(only_run(killed))
    result = json.loads((only_run(killed) / "result.json").read_text())
    assert {name: of_task["examples"] for name, of_task in result["test"].items()} == dict.fromkeys(packed["tasks"], 8)
