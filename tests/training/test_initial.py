"""`model.init` of a recipe: judged when the recipe is opened, put in place by a worker, from checkpoints and stores too."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file
from timm.models import VisionTransformer
from torch import nn

from polytrain.data import storage
from polytrain.experiment import open_experiment
from polytrain.model.architecture import Architecture
from polytrain.model.polyvit import PolyViT
from polytrain.model.pretrained import WeightsError
from polytrain.recipe import RecipeError, check
from polytrain.training import checkpoint
from polytrain.training.initial import local_copy, put_in_place

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def randomised(model):
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def opened(tree, **model):
    tree["model"] |= model
    return open_experiment(check(tree))[0]


def built(experiment):
    """The model as a worker makes it, started."""
    model = PolyViT(experiment.architecture)
    classes = {task.name: task.classes for task in experiment.tasks}
    return model, put_in_place(experiment.recipe.model, model, classes)


@pytest.fixture
def vit(tmp_path):
    """A ViT of the tiny recipe's size."""
    torch.manual_seed(0)
    model = randomised(VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2))
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    return tmp_path / "vit.safetensors"


def save(experiment, folder):
    """A checkpoint as the loop saves it."""
    model = randomised(PolyViT(experiment.architecture))
    state = {
        "step": 8,
        "architecture": experiment.architecture.plain(),
        "classes": {task.name: list(task.classes) for task in experiment.tasks},
    }
    checkpoint.save(folder, model=model, optimizer=None, recipe_yaml=experiment.recipe.yaml(), state=state)
    return model


# --- eps and GELU -------------------------------------------------------------------------------------------------


def test_without_init_eps_and_gelu_are_the_reference_codes(tiny):
    experiment = opened(tiny)
    assert (experiment.architecture.norm_eps, experiment.architecture.gelu) == (1e-6, "tanh")
    assert experiment.initial is None


def test_the_source_brings_its_eps_and_gelu_into_the_architecture(tiny, vit):
    (vit.parent / "config.json").write_text(json.dumps({"num_features": 16, "layer_norm_eps": 1e-3}))
    experiment = opened(tiny, init=str(vit))
    assert (experiment.architecture.norm_eps, experiment.architecture.gelu) == (1e-3, "none")


def test_a_recipe_that_names_them_is_obeyed(tiny, vit):
    experiment = opened(tiny, init=str(vit), norm_eps=1e-4, gelu="tanh")
    assert (experiment.architecture.norm_eps, experiment.architecture.gelu) == (1e-4, "tanh")


def test_runs_of_before_there_were_these_keys_keep_their_names(tiny):
    before = check(tiny).digest
    assert opened(tiny, init_tubelet="central", init_allow=[], gelu=None).recipe.digest == before
    assert opened(tiny, gelu="none").recipe.digest != before


# --- judged and put in place --------------------------------------------------------------------------------------


def test_what_was_judged_is_what_is_put_in_place(tiny, vit):
    experiment = opened(tiny, init=str(vit))
    model, report = built(experiment)
    assert report == experiment.initial
    assert model.tokenizers["audio"].class_token.any()
    assert {entry.place for entry in report.inflated} == {"tokenizers.video.embedding.weight"}


def test_weights_that_do_not_fit_are_faults_of_the_recipe(tiny, vit):
    with pytest.raises(RecipeError, match=r"^model\.init: .*vit\.safetensors: its transformer .* width 16, not 24"):
        opened(tiny, init=str(vit), width=24)


def test_a_missing_file_is_a_fault_of_the_recipe(tiny, tmp_path):
    with pytest.raises(RecipeError, match=r"model\.init: there is nothing at .*absent\.npz"):
        opened(tiny, init=str(tmp_path / "absent.npz"))


def test_a_pickle_that_would_run_code_is_a_fault_of_the_recipe(tiny, tmp_path):
    sprung = tmp_path / "sprung"
    (tmp_path / "x.pth").write_bytes(b"cposix\nmkdir\n(V" + str(sprung).encode() + b"\ntR.")
    with pytest.raises(RecipeError, match=r"model\.init: .*x\.pth holds no weights of a known kind"):
        opened(tiny, init=str(tmp_path / "x.pth"))
    assert not sprung.exists()
    pickle.loads((tmp_path / "x.pth").read_bytes())
    assert sprung.exists()


def test_what_is_allowed_stands_in_the_recipe(tiny, vit):
    deeper = {"init": str(vit), "depth": 3}
    with pytest.raises(RecipeError, match=r"encoder\.1\.norm1\.weight gets nothing"):
        opened(tiny, **deeper)
    assert opened(tiny, **deeper, init_allow=["encoder.1.*"]).initial.counts()["fresh"] == 12 + 6


def test_a_run_that_has_begun_does_not_look_at_init(tiny, vit):
    first = opened(tiny, init=str(vit)).architecture
    vit.unlink()
    tiny["model"]["init"] = str(vit)
    again, _ = open_experiment(check(tiny), begun={"architecture": json.loads(json.dumps(first.plain()))})
    assert again.architecture == first
    assert again.initial is None


# --- checkpoints of ours ------------------------------------------------------------------------------------------


def test_an_architecture_survives_json(tiny):
    architecture = opened(tiny, adaptor_layers=1).architecture
    assert Architecture.from_plain(json.loads(json.dumps(architecture.plain()))) == architecture


def test_a_checkpoint_is_copied_whole(tiny, tmp_path):
    saved = save(opened(tiny), tmp_path / "final")
    model, report = built(opened(tiny, init=str(tmp_path / "final")))
    assert all(torch.equal(a, b) for a, b in zip(saved.state_dict().values(), model.state_dict().values()))
    assert report.counts()["copied"] == len(model.state_dict())


def test_a_checkpoint_is_known_by_its_weights_file_too(tiny, tmp_path):
    save(opened(tiny), tmp_path / "final")
    report = opened(tiny, init=str(tmp_path / "final" / "model.safetensors")).initial
    assert report.kind == "a checkpoint of polytrain"


def test_a_checkpoint_brings_its_eps_and_gelu(tiny, tmp_path):
    save(opened(tiny, gelu="none", norm_eps=1e-3), tmp_path / "final")
    architecture = opened(tiny, gelu=None, norm_eps=None, init=str(tmp_path / "final")).architecture
    assert (architecture.norm_eps, architecture.gelu) == (1e-3, "none")


def test_a_checkpoint_of_another_task_set_gives_the_shared_parts_and_the_heads_by_name(tiny, tmp_path):
    saved = save(opened(tiny), tmp_path / "final")
    tiny["tasks"]["hues"] = tiny["tasks"].pop("colours") | {"head_init": "zeros"}
    del tiny["tasks"]["tones"]
    model, report = built(opened(tiny, init=str(tmp_path / "final")))
    assert torch.equal(model.heads["moves"].weight, saved.heads["moves"].weight)
    assert torch.equal(model.encoder[0].qkv.weight, saved.encoder[0].qkv.weight)
    assert not model.heads["hues"].weight.any()
    assert {e.place for e in report.fresh} == {"heads.hues.weight", "heads.hues.bias"}
    notes = {entry.note for entry in report.skipped}
    assert notes == {
        "the head of a task that the recipe has not",
        "the source's audio tokenizer, which nothing here takes",
    }


def test_a_checkpoint_of_before_state_json_held_the_architecture_is_read(tiny, tmp_path):
    saved = save(opened(tiny), tmp_path / "final")
    state = json.loads((tmp_path / "final" / "state.json").read_text())
    del state["architecture"]
    (tmp_path / "final" / "state.json").write_text(json.dumps(state))
    model, _ = built(opened(tiny, init=str(tmp_path / "final")))
    assert torch.equal(model.heads["tones"].weight, saved.heads["tones"].weight)


def test_a_checkpoint_on_other_grids_is_resized(tiny, tmp_path):
    save(opened(tiny), tmp_path / "final")
    tiny["modalities"]["image"]["size"] = [32, 24]
    report = opened(tiny, init=str(tmp_path / "final")).initial
    assert [(e.place, e.note) for e in report.resized] == [("tokenizers.image.positions", "2x2 -> 4x3")]


@pytest.mark.parametrize("file", ["model.safetensors", "state.json"])
def test_a_truncated_checkpoint_is_named(tiny, tmp_path, file):
    save(opened(tiny), tmp_path / "final")
    torn = tmp_path / "final" / file
    torn.write_bytes(torn.read_bytes()[:-10])
    with pytest.raises(RecipeError, match=rf"model\.init: .*{file}.* is (truncated|damaged)"):
        opened(tiny, init=str(tmp_path / "final"))


def test_weights_without_their_checkpoint_are_sent_back_to_it(tiny, tmp_path):
    save(opened(tiny), tmp_path / "final")
    alone = (tmp_path / "final" / "model.safetensors").rename(tmp_path / "alone.safetensors")
    with pytest.raises(RecipeError, match=r"is of a checkpoint of polytrain; give its folder"):
        opened(tiny, init=str(alone))


# --- from a store -------------------------------------------------------------------------------------------------


def test_weights_in_a_store_are_fetched_with_their_config(tiny, vit, s3):
    bucket = s3.bucket()
    storage.write_bytes(f"{bucket}/models/vit.safetensors", vit.read_bytes())
    config = json.dumps({"num_features": 16, "layer_norm_eps": 1e-3})
    storage.write_bytes(f"{bucket}/models/config.json", config.encode())
    experiment = opened(tiny, init=f"{bucket}/models/vit.safetensors")
    assert experiment.architecture.norm_eps == 1e-3
    assert built(experiment)[1] == experiment.initial


def test_a_checkpoint_in_a_store_is_fetched_without_its_optimizer(tiny, s3, tmp_path):
    saved = save(opened(tiny), tmp_path / "final")
    bucket = s3.bucket()
    for file in (tmp_path / "final").iterdir():
        storage.write_bytes(f"{bucket}/run/final/{file.name}", file.read_bytes())
    storage.write_bytes(f"{bucket}/run/final/optimizer.pt", b"not wanted")
    model, _ = built(opened(tiny, init=f"{bucket}/run/final"))
    assert torch.equal(model.norm.weight, saved.norm.weight)
    assert not (local_copy(f"{bucket}/run/final") / "optimizer.pt").exists()


def test_nothing_in_a_store_is_named(s3):
    bucket = s3.bucket()
    with pytest.raises(WeightsError, match="there is nothing at s3://.*/absent"):
        local_copy(f"{bucket}/absent")


def test_an_unknown_store_is_named():
    with pytest.raises(WeightsError, match="https://example.invalid/: is no URI of a known store"):
        local_copy("https://example.invalid/vit.npz")


def test_a_judged_report_travels_with_the_experiment(tiny, vit):
    experiment = opened(tiny, init=str(vit))
    assert pickle.loads(pickle.dumps(experiment)).initial == experiment.initial
