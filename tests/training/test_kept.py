"""`train.freeze`: a checkpoint's tasks stay as they are beside new ones, or the recipe is refused."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from timm.models import VisionTransformer
from torch import nn

from polytrain.data import manifest
from polytrain.experiment import open_experiment
from polytrain.model.polyvit import PolyViT
from polytrain.recipe import RecipeError, check
from polytrain.report import freeze_text, plan_text
from polytrain.training import checkpoint
from polytrain.training.initial import put_in_place
from polytrain.training.optimizer import clear_gradients, make_optimizer, update

pytestmark = pytest.mark.usefixtures("one_thread")


def opened(tree):
    return open_experiment(check(tree))[0]


def state_of(experiment):
    """What the loop writes of an experiment."""
    return {
        "step": 8,
        "architecture": experiment.architecture.plain(),
        "classes": {name: list(names) for name, names in experiment.classes.items()},
        "tasks": experiment.described_tasks(),
        "trained": experiment.trained,
    }


@torch.no_grad()
def save(experiment, folder):
    """A checkpoint with weights that are nowhere zero."""
    torch.manual_seed(0)
    model = PolyViT(experiment.architecture)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    state = state_of(experiment)
    checkpoint.save(folder, model=model, optimizer=None, recipe_yaml=experiment.recipe.yaml(), state=state)
    return model


@pytest.fixture
def final(tiny, tmp_path):
    """A checkpoint of the tiny recipe, which serves three tasks."""
    save(opened(tiny), tmp_path / "final")
    return tmp_path / "final"


@pytest.fixture
def frozen(tiny, final):
    """The recipe of a new image task on it."""
    tiny["model"] |= {"init": str(final)}
    tiny["train"] |= {"freeze": "encoder"}
    tiny["tasks"] = {"hues": tiny["tasks"]["colours"]}
    return tiny


def fault(tree) -> str:
    with pytest.raises(RecipeError) as error:
        opened(tree)
    return str(error.value)


# --- the recipe ---------------------------------------------------------------------------------------------------


def test_there_must_be_something_to_freeze(tiny):
    tiny["train"]["freeze"] = "encoder"
    assert "train.freeze: encoder keeps the weights that model.init starts from, and it is not given" in fault(tiny)


def test_a_frozen_run_is_another_run(frozen):
    names = {check({**frozen, "train": frozen["train"] | {"freeze": freeze}}).run_name for freeze in ("encoder", None)}
    assert len(names) == 2


def test_the_sizes_that_stay_must_be_the_recipes(frozen):
    frozen["model"] |= {"depth": 3, "norm_eps": 1e-3}
    frozen["modalities"]["image"] = {"size": [16, 32], "patch": [8, 8]}
    final = frozen["model"]["init"]
    assert fault(frozen).splitlines() == [
        f"model.depth: 3 was asked for, but {final} has 2, which train.freeze keeps",
        f"model.norm_eps: 0.001 was asked for, but {final} has 1e-06, which train.freeze keeps",
        f"modalities.image.size: [16, 32] was asked for, but {final} has [16, 16], which train.freeze keeps",
    ]


def test_the_geometry_of_a_modality_that_no_task_here_reads_is_the_checkpoints(frozen):
    frozen["modalities"]["video"] = {"frames": 8, "stride": 1, "size": [32, 32], "tubelet": [2, 8, 8]}
    assert opened(frozen).architecture.modalities["video"].frames == 4


def test_a_task_of_the_same_name_with_other_classes_is_refused(frozen, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(manifest.storage.local_path(frozen["tasks"]["hues"]["manifest"]).rpartition("/")[0], folder)
    read = manifest.read(folder / "manifest.parquet")
    manifest.write(
        folder / "manifest.parquet", task="x", modality="image", classes=("one", "two", "3"), table=read.table
    )
    frozen["tasks"] = {"colours": frozen["tasks"]["hues"] | {"manifest": str(folder / "manifest.parquet")}}
    assert "class 2 is three there and 3 here" in fault(frozen)


def test_a_task_of_the_same_name_in_another_modality_is_refused(frozen):
    frozen["tasks"] = {"moves": frozen["tasks"]["hues"]}
    assert "has a task of that name that reads video" in fault(frozen)


def test_a_recipe_of_old_tasks_alone_leaves_nothing_to_train(frozen):
    frozen["tasks"] = {"colours": frozen["tasks"]["hues"]}
    assert "nothing is left to train" in fault(frozen)


def test_what_would_stay_random_is_refused(tiny, tmp_path):
    vit = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    tiny["model"] |= {"init": str(tmp_path / "vit.safetensors"), "init_tubelet": "random"}
    tiny["train"]["freeze"] = "encoder"
    assert "leaves tokenizers.video.embedding.weight fresh, which train.freeze would leave random" in fault(tiny)
    tiny["model"]["init_tubelet"] = "central"
    assert opened(tiny).trained == ["colours", "moves", "tones"]


# --- what stays ---------------------------------------------------------------------------------------------------


def test_the_model_serves_old_and_new_tasks(frozen):
    experiment = opened(frozen)
    assert list(experiment.architecture.modalities) == ["image", "video", "audio"]
    assert list(experiment.architecture.tasks) == ["colours", "moves", "tones", "hues"]
    assert (experiment.modalities, experiment.trained) == (["image"], ["hues"])
    assert experiment.classes == dict.fromkeys(experiment.architecture.tasks, ("one", "two", "three"))


def test_carried_tasks_are_described_as_they_were(tiny, frozen):
    described = opened(frozen).described_tasks()
    assert described["tones"] == {"modality": "audio", "multi_label": True, "loss": "sigmoid", "metric": "mAP"}
    assert described["hues"] == {"modality": "image", "multi_label": False, "loss": "softmax", "metric": "top1"}


def test_old_tasks_that_the_recipe_names_get_no_step_and_no_validation_but_a_test(frozen):
    hues = frozen["tasks"]["hues"]
    frozen["tasks"] = {"colours": hues, "hues": hues | {"lr": 0.5}}
    experiment = opened(frozen)
    assert experiment.schedule.counts().tolist() == [0, 8]
    assert experiment.schedule.learning_rate(0) > 0.4
    assert [experiment.plan.eval_parts(task, "val") for task in (0, 1)] == [0, 2]
    assert [experiment.plan.eval_parts(task, "test") for task in (0, 1)] == [2, 2]


def test_weights_of_old_tasks_are_put_in_place_bit_for_bit(frozen, final):
    experiment = opened(frozen)
    model = PolyViT(experiment.architecture)
    put_in_place(experiment.recipe.model, model, experiment.classes)
    before = PolyViT(dataclasses.replace(experiment.architecture, tasks=dict(list(tasks_of(experiment))[:3])))
    checkpoint.load(final, before, None)
    now = model.state_dict()
    assert all(torch.equal(tensor, now[name]) for name, tensor in before.state_dict().items())
    assert now.keys() - before.state_dict().keys() == {"heads.hues.weight", "heads.hues.bias"}


def tasks_of(experiment):
    return experiment.architecture.tasks.items()


def test_a_new_modality_takes_the_nearest_tokenizer_and_leaves_it_where_it_is(tiny, tmp_path):
    tasks = tiny["tasks"]
    save(opened(tiny | {"tasks": {"colours": tasks["colours"]}}), tmp_path / "images")
    tiny["model"]["init"] = str(tmp_path / "images")
    tiny["train"]["freeze"] = "encoder"
    experiment = opened(tiny | {"tasks": {"tones": tasks["tones"]}})
    assert list(experiment.architecture.modalities) == ["image", "audio"]
    model = PolyViT(experiment.architecture)
    put_in_place(experiment.recipe.model, model, experiment.classes)
    image, audio = (model.tokenizers[name].state_dict() for name in ("image", "audio"))
    assert torch.equal(image["embedding.weight"], audio["embedding.weight"])


def test_a_run_that_has_begun_needs_the_checkpoint_no_more(frozen, final):
    first = opened(frozen)
    shutil.rmtree(final)
    again, _ = open_experiment(check(frozen), begun=json.loads(json.dumps(state_of(first))))
    assert (again.architecture, again.tasks, again.carried) == (first.architecture, first.tasks, first.carried)
    assert again.plan.digest == first.plan.digest


def test_a_task_is_added_to_a_model_that_was_added_to(frozen, tmp_path):
    save(opened(frozen), tmp_path / "second")
    frozen["model"]["init"] = str(tmp_path / "second")
    frozen["tasks"] = {"tints": frozen["tasks"]["hues"]}
    assert list(opened(frozen).architecture.tasks) == ["colours", "moves", "tones", "hues", "tints"]


# --- what moves ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_neither_momentum_nor_weight_decay_moves_what_is_frozen(frozen, name):
    model = PolyViT(opened(frozen).architecture)
    model.freeze_but(["hues"])
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    optimizer = make_optimizer(model, name=name, momentum=0.9, weight_decay=0.5)
    used = model.used_by("hues")
    for _ in range(3):
        clear_gradients(optimizer)
        loss = model("hues", torch.rand(2, 3, 16, 16)).square().sum() + model.heads["hues"].weight.sum()
        for parameter, gradient in zip(used, torch.autograd.grad(loss, used)):
            parameter.grad = gradient
        update(optimizer, used, 0.1, 1.0)
    moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert moved == {"heads.hues.weight", "heads.hues.bias"}


# --- what is told -------------------------------------------------------------------------------------------------


def test_the_plan_says_what_is_trained_and_what_stays(frozen):
    frozen["tasks"] = {"colours": frozen["tasks"]["hues"], "hues": frozen["tasks"]["hues"]}
    experiment = opened(frozen)
    line = "Frozen but for the head of hues; heads that stay as they are: colours (tested), moves, tones (not read)"
    assert freeze_text(experiment) == line
    assert line in plan_text(experiment)
