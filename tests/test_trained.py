"""A checkpoint opened for use: found where users point, refused where it is none, the same model as was saved."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import polytrain
from polytrain.data import storage
from polytrain.data.device import DeviceInputs
from polytrain.data.spectrogram import LogMel
from polytrain.data.views import views_at_test
from polytrain.modalities import Audio, Image, Video
from polytrain.model.polyvit import PolyViT, on_meta, parameters_by_part
from polytrain.recipe import check
from polytrain.training import checkpoint
from polytrain.training.checkpoint import CheckpointError
from polytrain.training.description import preprocessing, versions

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(checkpoint_of_three):
    return polytrain.load(checkpoint_of_three)


@pytest.fixture
def copy(checkpoint_of_three, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(checkpoint_of_three, tmp_path / "copy")


def restate(folder, change):
    """Change state.json as a writer might have written it."""
    state = json.loads((folder / "state.json").read_text())
    change(state)
    (folder / "state.json").write_text(json.dumps(state))


def vouch(folder, name):
    """Let state.json vouch for a file as it is now."""
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    restate(folder, lambda state: state["sha256"].update({name: digest}))


def refusal(place) -> str:
    with pytest.raises(CheckpointError) as error:
        polytrain.load(place).forward("cpu")
    return str(error.value)


def clips(geometry, count, seed=0):
    """Media as decoders give them."""
    rng = np.random.default_rng(seed)
    if geometry.decoded_dtype == "uint8":
        return rng.integers(0, 256, (count, *geometry.decoded_shape), np.uint8)
    return rng.uniform(-1, 1, (count, *geometry.decoded_shape)).astype(np.float32)


# --- where it lies ------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_found_by_its_folder_and_by_a_file_in_it(checkpoint_of_three):
    for place in (checkpoint_of_three, str(checkpoint_of_three), checkpoint_of_three / "model.safetensors"):
        assert polytrain.load(place).path == checkpoint_of_three


def test_of_a_run_the_final_checkpoint_is_taken_else_the_best_else_the_newest(checkpoint_of_three, tmp_path):
    for name in ("checkpoints/step_000000009", "checkpoints/step_000000012", "best", "final"):
        shutil.copytree(checkpoint_of_three, tmp_path / name)
        assert polytrain.load(tmp_path).path == tmp_path / name
    (tmp_path / "final" / "state.json").unlink()
    assert polytrain.load(tmp_path).path == tmp_path / "best"


def test_what_was_opened_is_told(checkpoint_of_three, tmp_path):
    shutil.copytree(checkpoint_of_three, tmp_path / "best")
    assert polytrain.load(tmp_path).place == str(tmp_path / "best")
    assert repr(polytrain.load(tmp_path)).startswith(f"<{tmp_path}/best: colours (image), moves (video)")


def test_a_run_in_a_store_is_opened_without_its_optimizer(s3, checkpoint_of_three):
    run = f"{s3.bucket()}/runs/x"
    for file in checkpoint_of_three.iterdir():
        storage.write_bytes(f"{run}/final/{file.name}", file.read_bytes())
    storage.write_bytes(f"{run}/final/optimizer.pt", b"never fetched")
    opened = polytrain.load(run)
    assert opened.place == f"{run}/final"
    assert not (opened.path / "optimizer.pt").exists()
    assert opened.forward("cpu").model.heads["tones"].weight.any()


def test_opening_and_describing_need_no_torch(checkpoint_of_three):
    code = f"import polytrain, sys; polytrain.load({str(checkpoint_of_three)!r}).about(); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"


# --- what it says -------------------------------------------------------------------------------------------------


def test_tasks_are_known_with_modality_classes_loss_and_metric(trained):
    assert [(t.name, t.modality, t.loss, t.metric) for t in trained.tasks.values()] == [
        ("colours", "image", "softmax", "top1"), ("moves", "video", "softmax", "top1"),
        ("tones", "audio", "sigmoid", "mAP"), ("hues", "image", "softmax", "top1"), ("pitches", "audio", "softmax", "top1"),
    ]  # fmt: skip
    assert {t.classes for t in trained.tasks.values()} == {("one", "two", "three")}
    assert [t.name for t in trained.tasks_of("image")] == ["colours", "hues"]


def test_tasks_of_checkpoints_of_before_are_told_by_their_recipe_and_metrics(copy, trained):
    def before(state):
        del state["tasks"], state["preprocessing"], state["license"]
        state["progress"]["validation"] = {"tones": {"mAP": 50.0, "loss": 1.0}, "moves": {"top1": 40.0}}

    restate(copy, before)
    opened = polytrain.load(copy)
    assert opened.tasks == trained.tasks
    assert opened.state["progress"]["validation"]["moves"] == {"top1": 40.0}
    assert "mel_scale htk" in opened.about().replace("\n      ", " ")


def test_a_task_that_it_has_not_is_answered_with_those_it_has_the_nearest_first(trained):
    with pytest.raises(CheckpointError, match=r"has no task tone; it has tones, colours, moves, hues, pitches"):
        trained.task("tone")


def test_the_recipe_is_the_resolved_one(trained):
    assert trained.recipe.run_name.startswith("tiny-")
    assert check(trained.recipe.plain()) == trained.recipe


def test_views_are_those_of_the_runs_final_test(copy):
    text = (copy / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(text.replace("eval:\n  views: null", "eval:\n  views: {video: [4, 3]}"))
    vouch(copy, "recipe.yaml")
    opened = polytrain.load(copy)
    assert len(opened.views_of("image")) == 1
    assert opened.views_of("video") == views_at_test(Video, (4, 3))


def test_a_stranger_is_told_everything(trained):
    text = trained.about()
    parameters = parameters_by_part(on_meta(trained.architecture))["total"]
    for needed in (f"{parameters:,} parameters", "licence: none given", "colours: one, two, three", "sha256", "torch 2.",
                   "Pillow's BILINEAR", "sample_rate: 8000", "GELU by tanh"):  # fmt: skip
        assert needed in text.replace("\n      ", " "), needed


def test_the_licence_stands_in_the_state_and_does_not_rename_runs(tiny):
    assert check(tiny | {"license": "CC-BY-4.0"}).run_name == check(tiny).run_name


def test_the_preprocessing_of_sounds_is_told_in_the_numbers_that_are_used():
    geometry = Audio(sample_rate=16000, seconds=1.0, mel_bins=32, patch=(4, 4), mean=-3.0)
    told, mel = preprocessing(geometry), LogMel(geometry).mel
    assert told["log_mel"]["fft"] == mel.n_fft
    assert (told["log_mel"]["from_hz"], told["log_mel"]["to_hz"]) == (mel.f_min, mel.f_max)
    assert (told["mean"], told["deviation"], told["sample_rate"]) == (-3.0, 4.57, 16000)
    assert told["input"] == [3, 100, 32]


@pytest.mark.parametrize(
    "geometry", [Image((16, 24), (8, 8)), Video(4, 2, (16, 16), (2, 8, 8)), Audio(8000, 0.32, 16, (8, 8))]
)
def test_shapes_are_told_as_they_are(geometry):
    told, inputs = preprocessing(geometry), DeviceInputs({"x": geometry})["x"]
    media = clips(geometry, 1)
    assert list(media.shape[1:]) == told["decoded"]
    assert list(inputs(torch.from_numpy(media)).shape[1:]) == told["input"]
    json.dumps(told)


def test_versions_are_those_installed():
    assert versions()["torch"] == torch.__version__
    assert versions()["numpy"] == np.__version__
    assert {"polytrain", "python", "torchvision", "torchaudio", "av", "pyarrow", "ray", "simplejpeg"} <= set(versions())


# --- its model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["colours", "moves", "tones"])
def test_logits_are_those_of_the_model_that_was_saved(trained, checkpoint_of_three, task):
    model = PolyViT(trained.architecture).eval()
    checkpoint.load(checkpoint_of_three, model, None)
    modality = trained.task(task).modality
    media = clips(trained.architecture.modalities[modality], 5)
    x = DeviceInputs(trained.architecture.modalities)[modality](torch.from_numpy(media))
    with torch.inference_mode():
        assert torch.equal(trained.forward("cpu").logits(task, media), model(task, x))


def test_features_are_what_heads_read(trained):
    forward = trained.forward("cpu")
    media = clips(trained.architecture.modalities["audio"], 3)
    features = forward.features("audio", media)
    assert features.shape == (3, 16)
    for task, logits in forward.outputs("audio", media, ("tones", "pitches")).items():
        torch.testing.assert_close(forward.model.heads[task](features), logits)


def test_many_media_go_through_in_several_passes(trained, monkeypatch):
    forward = trained.forward("cpu")
    media = clips(trained.architecture.modalities["video"], 7)
    at_once = forward.logits("moves", media)
    monkeypatch.setattr("polytrain.forward.TOKENS_CPU", 20)  # two clips of nine tokens
    torch.testing.assert_close(forward.logits("moves", media), at_once)


def test_no_media_give_no_outputs(trained):
    forward = trained.forward("cpu")
    empty = clips(trained.architecture.modalities["image"], 0)
    assert forward.logits("hues", empty).shape == (0, 3)
    assert forward.features("image", empty).shape == (0, 16)


def test_media_in_shared_memory_are_read_only_and_no_trouble(trained, recwarn):
    media = clips(trained.architecture.modalities["image"], 2)
    media.flags.writeable = False
    trained.forward("cpu").logits("colours", media)
    assert not recwarn.list


def test_a_model_that_travelled_is_the_same(trained):
    arrived = pickle.loads(pickle.dumps(trained.portable()))("cpu")
    media = clips(trained.architecture.modalities["video"], 2)
    assert torch.equal(arrived.logits("moves", media), trained.forward("cpu").logits("moves", media))


def test_probabilities_are_torchs(trained):
    logits = np.array([[1000.0, 0, -1000], [1, 2, 3]], np.float32)
    for task, function in (("colours", lambda x: x.softmax(1)), ("tones", torch.sigmoid)):
        expected = function(torch.from_numpy(logits)).numpy()
        np.testing.assert_allclose(trained.task(task).probabilities(logits), expected, rtol=1e-6, atol=1e-30)


# --- what is refused ----------------------------------------------------------------------------------------------


def test_nothing_there(tmp_path):
    assert refusal(tmp_path / "absent") == f"there is nothing at {tmp_path}/absent"


def test_an_empty_folder(tmp_path):
    assert "holds no checkpoint: neither state.json nor final, best or checkpoints/step_*" in refusal(tmp_path)


def test_other_peoples_weights_are_sent_to_where_they_serve(tmp_path):
    save_file({"blocks.0.attn.qkv.weight": torch.ones(3, 3)}, tmp_path / "model.safetensors")
    for place in (tmp_path, tmp_path / "model.safetensors"):
        assert f"jobs/cotrain.py model.init={place} would start from them" in refusal(place)


@pytest.mark.parametrize("name", ["state.json", "model.safetensors", "recipe.yaml"])
def test_a_truncated_file_is_named(copy, name):
    os.truncate(copy / name, (copy / name).stat().st_size - 10)
    assert refusal(copy).startswith(f"{copy / name} is damaged")


@pytest.mark.parametrize("name", ["model.safetensors", "recipe.yaml"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    assert refusal(copy) == f"{copy / name} is missing"


def test_a_state_that_vouches_for_no_weights_is_refused(copy):
    restate(copy, lambda state: state["sha256"].pop("model.safetensors"))
    assert "says nothing of model.safetensors" in refusal(copy)


@pytest.mark.parametrize("digests", [None, "x", 3, ["x"]])
def test_a_state_whose_digests_are_none_is_damaged(copy, digests):
    restate(copy, lambda state: state.update(sha256=digests))
    assert refusal(copy) == f"{copy / 'state.json'} is damaged"


def test_a_checkpoint_of_a_newer_format_is_refused(copy):
    restate(copy, lambda state: state.update(format=2))
    assert "is of format 2; this polytrain reads format 1" in refusal(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["architecture"].update(mamba_layers=3),
        lambda state: state["architecture"].pop("width"),
        lambda state: state["architecture"]["modalities"].update(smell={"size": [2, 2]}),
        lambda state: state["classes"].update(colours=["one"]),
        lambda state: state["classes"].pop("moves"),
        lambda state: state["tasks"].pop("hues"),
        lambda state: state["tasks"]["hues"].update(loss="hinge"),
        lambda state: state.update(architecture=[1]),
    ],
)
def test_a_state_that_makes_no_sense_is_refused(copy, change):
    restate(copy, change)
    assert f"{copy}: what its state.json says of the model is damaged, or of another version" in refusal(copy)


def another(weights, key, tensor):
    return {**weights, key: tensor}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: another(w, "norm.weight", torch.ones(24)),
            "norm.weight is [24], the architecture in state.json says [16]",
        ),
        (lambda w: another(w, "rogue.weight", torch.ones(1)), "holds rogue.weight, which the architecture"),
        (lambda w: {n: t for n, t in w.items() if n != "encoder.0.qkv.weight"}, "has no encoder.0.qkv.weight"),
    ],
)
def test_weights_of_another_architecture_are_refused_with_the_first_that_differs(copy, change, message):
    save_file(change(load_file(copy / "model.safetensors")), copy / "model.safetensors")
    vouch(copy, "model.safetensors")
    assert f"{copy}/model.safetensors: {message}" in refusal(copy)
    with pytest.raises(CheckpointError, match="of another model"):
        polytrain.load(copy).portable()


# --- nothing is run that a file asks for --------------------------------------------------------------------------


@pytest.fixture
def trap(tmp_path):
    """A pickle that makes a folder when it is unpickled, and that folder."""
    sprung = tmp_path / "sprung"
    return b"cposix\nmkdir\n(V" + str(sprung).encode() + b"\ntR.", sprung


@pytest.mark.parametrize("name", ["model.safetensors", "recipe.yaml", "state.json", "optimizer.pt"])
def test_a_pickle_in_a_files_place_is_not_executed(copy, trap, name):
    content, sprung = trap
    (copy / name).write_bytes(content)
    if name != "state.json":
        vouch(copy, name)
    if name == "optimizer.pt":  # never read
        polytrain.load(copy).forward("cpu")
    else:
        try:
            opened = polytrain.load(copy)
            opened.forward("cpu")
            refused = opened.recipe is None
        except CheckpointError:
            refused = True
        assert refused
    assert not sprung.exists()


def test_a_pickle_instead_of_a_checkpoint_is_refused_not_executed(tmp_path, trap):
    content, sprung = trap
    (tmp_path / "model.pth").write_bytes(content)
    assert f"{tmp_path}/model.pth is no checkpoint of polytrain" in refusal(tmp_path / "model.pth")
    assert not sprung.exists()
    pickle.loads(content)
    assert sprung.exists()


def test_yaml_that_asks_for_python_is_refused_not_executed(copy, tmp_path):
    text = (copy / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(text + f"x: !!python/object/apply:os.mkdir ['{tmp_path}/sprung']\n")
    vouch(copy, "recipe.yaml")
    with pytest.raises(CheckpointError, match="not valid YAML"):
        polytrain.load(copy).recipe.plain()
    assert not (tmp_path / "sprung").exists()
