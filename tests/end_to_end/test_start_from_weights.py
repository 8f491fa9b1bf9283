"""A run that starts from published weights, and one that starts from that run: real Ray, media and MLflow."""

import json

import pytest
import torch
from job_runner import only_run
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file
from timm.models import VisionTransformer

pytestmark = pytest.mark.slow


@pytest.fixture
def vit(tmp_path):
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    return tmp_path / "vit.safetensors"


@pytest.mark.soak
def test_a_run_says_what_it_took_and_keeps_eps_and_gelu(runner, tiny, recipe_file, vit, tmp_path):
    recipe = recipe_file(tiny)
    output = runner.run(recipe, f"model.init={vit}", "train.workers=2")
    assert "LayerNorm eps 1e-06, GELU exact" in output
    assert "tokenizers.image.positions (4x4 -> 2x2)" in output
    assert "inflated: tokenizers.video.embedding.weight" in output
    run = only_run(tmp_path / "runs")
    state = json.loads((run / "final" / "state.json").read_text())
    assert (state["architecture"]["norm_eps"], state["architecture"]["gelu"]) == (1e-6, "none")
    record = json.loads((run / "run.json").read_text())
    client = MlflowClient(record["uri"])
    assert client.get_run(record["run_id"]).data.tags["polytrain.init"] == "timm's names"
    assert "init.txt" in {file.path for file in client.list_artifacts(record["run_id"])}
    # Small learning rates and few steps: what was started from is still to be seen.
    trained = load_file(run / "final" / "model.safetensors")["encoder.0.fc1.weight"]
    start = load_file(vit)["blocks.1.mlp.fc1.weight"]
    assert torch.nn.functional.cosine_similarity(trained.flatten(), start.flatten(), dim=0) > 0.8

    # It has begun, and needs the file no more.
    vit.unlink()
    assert "is finished" in runner.run(recipe, f"model.init={vit}", "train.workers=2")

    # The next run starts from this one, with one task less.
    output = runner.run(
        recipe_file(tiny | {"name": "second", "tasks": {k: tiny["tasks"][k] for k in ("colours", "moves")}}),
        f"model.init={run / 'final'}",
    )
    assert "a checkpoint of polytrain" in output
    assert "the head of a task that the recipe has not" in output


def test_weights_that_do_not_fit_end_the_command_before_anything_starts(runner, tiny, recipe_file, vit, tmp_path):
    output = runner.run(recipe_file(tiny), f"model.init={vit}", "model.depth=3", code=2)
    assert output.startswith("error: model.init: ")
    assert "Traceback" not in output
    assert not (tmp_path / "runs").exists()
