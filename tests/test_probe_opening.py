"""What a probe asks is checked before anything starts: model, geometry, grid, splits."""

import shutil

import pytest
import torch
import yaml
from safetensors.torch import save_file
from timm.models import VisionTransformer

from polytrain.experiment import open_experiment
from polytrain.model.polyvit import PolyViT
from polytrain.probe.command import sorted_words
from polytrain.probe.opening import loop_recipe, open_probing
from polytrain.recipe import RecipeError, check
from polytrain.training import checkpoint
from polytrain.training.checkpoint import CheckpointError
from small_media import make_task


@pytest.fixture
def asked(media, tmp_path):
    """A recipe of new tasks that says nothing of the model, as nested dicts."""
    settings = {"steps": 10, "lr": 0.1, "batch_size": 5}
    return {
        "tasks": {
            "shades": {"modality": "image", "manifest": str(media["image"])} | settings,
            "chords": {"modality": "audio", "manifest": str(media["several"])} | settings,
        },
        "output": str(tmp_path / "runs"),
    }


@pytest.fixture
def opened(checkpoint_of_three, asked, tmp_path):
    def make(*overrides, place=checkpoint_of_three, **changes):
        file = tmp_path / "asked.yaml"
        file.write_text(yaml.safe_dump(asked | changes))
        return open_probing(str(place), str(file), overrides)

    return make


def points(probing):
    return {task.name: [point.values for point in task.points] for task in probing.tasks}


def test_without_a_grid_it_is_the_papers(opened):
    assert points(opened()) == {task: [{"lr": 0.03}, {"lr": 0.1}, {"lr": 0.3}] for task in ("shades", "chords")}


def test_the_model_and_the_geometry_are_the_checkpoints(opened):
    probing = opened()
    a = probing.architecture
    assert (a.depth, a.width, a.heads, a.mlp_width, a.adaptor_layers) == (2, 16, 2, 32, 1)
    assert list(a.modalities) == ["image", "audio"]
    assert a.modalities["image"].size == (16, 16)
    assert set(a.tasks) == {"shades", "chords"}


def test_a_geometry_of_the_recipe_goes_before_the_checkpoints(opened):
    probing = opened(modalities={"image": {"size": [32, 32], "patch": [8, 8]}})
    assert probing.architecture.modalities["image"].size == (32, 32)
    assert [entry.note for entry in probing.report.resized] == ["2x2 -> 4x4"]


def test_a_task_of_the_checkpoint_may_be_probed_again(opened, media):
    probing = opened(tasks={"colours": {"modality": "image", "manifest": str(media["image"]), "steps": 5, "lr": 0.1, "batch_size": 5}})  # fmt: skip
    (task,) = probing.tasks
    assert not task.random
    assert task.loop is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"augment": "image"}, "augment: image"), ({"mixup_alpha": 0.3}, "mixup_alpha: 0.3"), ({"drop_path": 0.1}, "drop_path: 0.1")],
)  # fmt: skip
def test_what_changes_an_examples_features_is_named(opened, asked, changes, reason):
    asked["tasks"]["shades"] |= changes
    probing = opened()
    assert {task.name: task.random for task in probing.tasks} == {"shades": reason, "chords": ""}
    recipe = loop_recipe(probing, [task for task in probing.tasks if task.random])
    assert (recipe.train.freeze, recipe.sweep.tasks, recipe.model.init) == ("encoder", ["shades"], probing.probed.place)


def test_published_weights_may_be_probed(opened, tmp_path, asked):
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    audio = {"sample_rate": 8000, "seconds": 0.32, "mel_bins": 16, "patch": [8, 8]}
    probing = opened(
        place=tmp_path / "vit.safetensors",
        model={"depth": 2, "width": 16, "heads": 2, "mlp_width": 32},
        modalities={"image": {"size": [32, 32], "patch": [8, 8]}, "audio": audio},
    )
    assert probing.probed.trained is None
    assert probing.probed.kind == "timm's names"
    assert probing.architecture.gelu == "none"


def test_the_same_question_has_the_same_folder_and_another_another(opened):
    folder = opened().folder
    assert opened().folder == folder
    assert opened("name=other").folder.name != folder.name
    assert opened("name=cotrain", "data.decode_cpus=1", "tracking.experiment=x").folder == folder
    others = [opened("grid.lr=[0.1]"), opened("eval.views=paper"), opened("tasks.shades.steps=11")]
    assert len({folder, *(other.folder for other in others)}) == 4


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.depth=3"], r"model.depth: 3 was asked for, but .*final has 2; leave model out"),
        (["model.init=elsewhere"], "model.init: the model that is probed stands first on the command line"),
        (["search.sampler=tpe"], "search.sampler: a probe runs a grid"),
        (["optimizer.name=adamw"], r"grid: there is none, and the paper's .* is for sgd"),
        (["grid.model.drop_path=[0,0.1]"], "grid.model.drop_path: a probe searches keys of tasks and of optimizer"),
        (["probe.conversion=both"], "probe.conversion: input should be 'paper' or 'code', not 'both'"),
        (["output=s3://bucket/runs"], "output: s3://bucket/runs is a URI"),
        (["sweep.tasks=[shads]"], "the recipe has no task shads; did you mean shades?"),
        (["modalities.image.patch=[4,4]"], r"gets nothing: .* would fit"),
    ],
)
def test_a_mistake_is_told(opened, overrides, message):
    with pytest.raises(RecipeError, match=message):
        opened(*overrides)


@pytest.fixture
def images_only(tiny, tmp_path):
    """A checkpoint that knows images alone."""
    tiny["tasks"] = {"colours": tiny["tasks"]["colours"]}
    experiment, _ = open_experiment(check(tiny))
    state = {
        "step": 8,
        "architecture": experiment.architecture.plain(),
        "classes": {name: list(names) for name, names in experiment.classes.items()},
        "tasks": experiment.described_tasks(),
    }
    model = PolyViT(experiment.architecture)
    checkpoint.save(tmp_path / "one", model=model, optimizer=None, recipe_yaml=experiment.recipe.yaml(), state=state)
    return tmp_path / "one"


def test_a_modality_that_the_checkpoint_does_not_know_needs_a_geometry(opened, images_only):
    with pytest.raises(RecipeError, match="tasks.chords is a audio task, but modalities.audio is not given"):
        opened(place=images_only)
    audio = {"sample_rate": 8000, "seconds": 0.32, "mel_bins": 16, "patch": [8, 8]}
    probing = opened(place=images_only, modalities={"audio": audio})
    assert [entry.place for entry in probing.report.resized] == ["tokenizers.audio.positions"]


def test_a_grid_needs_a_validation_split(opened, asked, tmp_path):
    path = make_task(tmp_path / "unjudged", "image", sizes={"train": 24, "test": 8})
    asked["tasks"] = {"shades": asked["tasks"]["shades"] | {"manifest": str(path)}}
    with pytest.raises(RecipeError, match="has no val split, by which the best of 3 points would be chosen"):
        opened()
    assert points(opened("grid.lr=[0.1]")) == {"shades": [{"lr": 0.1}]}


def test_random_features_of_a_task_that_the_checkpoint_has_need_another_name(opened, asked):
    asked["tasks"] = {"colours": asked["tasks"]["shades"] | {"mixup_alpha": 0.3}}
    with pytest.raises(RecipeError, match=r"mixup_alpha: 0.3 takes the ordinary loop .*\n.*another name"):
        opened()


def test_a_folder_without_a_checkpoint_is_told(opened, tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        opened(place=tmp_path)


def test_a_truncated_checkpoint_is_told(opened, checkpoint_of_three, tmp_path):
    torn = shutil.copytree(checkpoint_of_three, tmp_path / "torn")
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged"):
        opened(place=torn)


@pytest.mark.parametrize("words", [["final"], ["final", "a.yaml", "b.yaml"], ["grid.lr=[0.1]"]])
def test_a_checkpoint_and_a_recipe_are_needed(words):
    with pytest.raises(RecipeError, match="needed"):
        sorted_words(words)


def test_words_come_in_any_order():
    assert sorted_words(["tasks=[a,b]", "runs/x=1/final", "views=paper", "a.yaml", "grid.lr=[1]"]) == (
        "runs/x=1/final",
        "a.yaml",
        ["sweep.tasks=[a,b]", "eval.views=paper", "grid.lr=[1]"],
    )
