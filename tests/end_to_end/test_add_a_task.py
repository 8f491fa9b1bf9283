"""A task is added to a trained model: real Ray, media and MLflow; the old tasks notice nothing."""

import json
import shutil

import pytest
import torch
from job_runner import only_run
from safetensors.torch import load_file

from polytrain.model.architecture import Architecture
from polytrain.model.polyvit import PolyViT

pytestmark = pytest.mark.slow


def opened(folder):
    """The model of a checkpoint, and its state."""
    state = json.loads((folder / "state.json").read_text())
    model = PolyViT(Architecture.from_plain(state["architecture"])).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model, state


def test_one_checkpoint_serves_the_old_tasks_bit_for_bit_and_the_new_one(runner, tiny, media, recipe_file, tmp_path):
    runner.run(recipe_file(tiny | {"output": str(tmp_path / "old")}))
    old_run = only_run(tmp_path / "old")
    old, old_state = opened(old_run / "final")

    colours = tiny["tasks"]["colours"]
    hues = {"modality": "image", "manifest": str(media["image"]), "steps": 30, "lr": 0.5, "batch_size": 8}
    recipe = recipe_file(
        tiny
        | {
            "tasks": {"colours": colours, "hues": hues},
            "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1, "clip_norm": None},
        }
    )
    start = [recipe, f"model.init={old_run / 'final'}", "train.freeze=encoder", "train.workers=2"]
    output = runner.run(*start)
    assert "Frozen but for the head of hues; heads that stay as they are: colours (tested), moves, tones (not" in output
    run = only_run(tmp_path / "runs")
    new, state = opened(run / "final")

    x = {name: torch.rand(4, 3, *geometry.input_shape) for name, geometry in old.architecture.modalities.items()}
    with torch.inference_mode():
        for task, head in old.architecture.tasks.items():
            assert torch.equal(old(task, x[head.modality]), new(task, x[head.modality])), task
    weights = new.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in old.state_dict().items())
    assert weights["heads.hues.weight"].abs().max() > 0.01

    results = json.loads((run / "result.json").read_text())
    assert results["test"]["colours"] == old_state["results"]["test"]["colours"]
    assert results["test"]["hues"]["top1"] > 80
    assert list(results["val"]) == ["hues"]
    assert state["tasks"]["tones"]["multi_label"] is True
    assert list(state["classes"]) == ["colours", "moves", "tones", "hues"]

    shutil.rmtree(old_run)  # it is needed no more
    assert "is finished" in runner.run(*start)
