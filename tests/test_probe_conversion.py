"""A model of one modality probed on another: facts of PolyViT's appendix, by numpy and scipy at the paper's sizes."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import nn

from polytrain.modalities import Audio, Image, Video
from polytrain.model.architecture import Architecture, Head
from polytrain.model.polyvit import PolyViT
from polytrain.probe.opening import TUBELETS
from polytrain.probe.trunk import open_trunk
from polytrain.recipe import Model
from polytrain.training import checkpoint

GEOMETRIES = {
    "image": Image(size=(384, 384), patch=(16, 16)),
    "video": Video(frames=32, stride=2, size=(224, 224), tubelet=(4, 16, 16)),
    "audio": Audio(sample_rate=16000, seconds=8, mel_bins=128, patch=(16, 16)),
}
GRIDS = {"image": (24, 24), "audio": (50, 8)}


def architecture(*modalities: str, adaptor_layers: int = 0) -> Architecture:
    return Architecture(
        2, 8, 2, 16, adaptor_layers=adaptor_layers,
        modalities={name: GEOMETRIES[name] for name in modalities},
        tasks={name: Head(name, 3) for name in modalities},
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Makes checkpoints of models with random weights: their folder."""

    def make(*modalities: str, seed: int = 0, weights: dict | None = None, **more) -> str:
        torch.manual_seed(seed)
        model = PolyViT(architecture(*modalities, **more))
        with torch.no_grad():
            for parameter in model.parameters():
                nn.init.normal_(parameter, std=0.5)
        if weights is not None:
            model.load_state_dict(weights, strict=False)
        folder = tmp_path_factory.mktemp("trained") / "final"
        classes = {name: ["a", "b", "c"] for name in modalities}
        state = {"format": 1, "step": 1, "architecture": model.architecture.plain(), "classes": classes}
        checkpoint.save(folder, model=model, optimizer=None, recipe_yaml="", state=state)
        return folder, {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    return make


def probed(folder, modality: str, conversion: str = "paper", **more) -> dict[str, np.ndarray]:
    """The trunk's weights, converted."""
    settings = Model(
        depth=2, width=8, heads=2, mlp_width=16, init=str(folder), init_tubelet=TUBELETS[conversion], **more
    )
    trunk = open_trunk(settings, architecture(modality, adaptor_layers=settings.adaptor_layers))
    return {name: tensor.numpy() for name, tensor in trunk.weights.items()}


def zoomed(positions: np.ndarray, before: tuple[int, int], after: tuple[int, int]) -> np.ndarray:
    """[before, d] -> [after, d] as the reference's scipy.ndimage.zoom of order 1."""
    factors = (after[0] / before[0], after[1] / before[1], 1)
    return scipy.ndimage.zoom(positions.reshape(*before, -1).astype(np.float64), factors, order=1)


def of(weights: dict, modality: str, part: str) -> np.ndarray:
    return weights[f"tokenizers.{modality}.{part}"]


@pytest.mark.parametrize(("source", "target"), [("image", "audio"), ("audio", "image")])
def test_between_images_and_sounds_the_kernel_stays_and_positions_are_interpolated(trained, source, target):
    folder, before = trained(source)
    after = probed(folder, target)
    assert (of(after, target, "embedding.weight") == of(before, source, "embedding.weight")).all()
    assert (of(after, target, "embedding.bias") == of(before, source, "embedding.bias")).all()
    expected = zoomed(of(before, source, "positions")[0, 1:], GRIDS[source], GRIDS[target])
    np.testing.assert_allclose(of(after, target, "positions")[0, 1:], expected.reshape(-1, 8), atol=1e-5)


@pytest.mark.parametrize("target", ["image", "audio"])
def test_from_videos_the_kernel_is_summed_and_positions_averaged_over_time(trained, target):
    folder, before = trained("video")
    after = probed(folder, target)
    kernel = of(before, "video", "embedding.weight")
    assert kernel.shape == (8, 3, 4, 16, 16)
    np.testing.assert_allclose(of(after, target, "embedding.weight"), kernel.sum(2), rtol=1e-5, atol=1e-6)
    assert (of(after, target, "embedding.bias") == of(before, "video", "embedding.bias")).all()
    mean = of(before, "video", "positions")[0, 1:].reshape(8, 14, 14, 8).mean(0)
    expected = zoomed(mean, (14, 14), GRIDS[target])
    np.testing.assert_allclose(of(after, target, "positions")[0, 1:], expected.reshape(-1, 8), atol=1e-5)


@pytest.mark.parametrize("source", ["image", "audio"])
def test_to_videos_the_papers_rule_repeats_the_kernel_over_the_frames(trained, source):
    folder, before = trained(source)
    kernel = of(probed(folder, "video"), "video", "embedding.weight")
    assert kernel.shape == (8, 3, 4, 16, 16)
    for frame in range(4):
        assert (kernel[:, :, frame] == of(before, source, "embedding.weight")).all()


@pytest.mark.parametrize("source", ["image", "audio"])
def test_to_videos_the_codes_rule_puts_the_kernel_in_the_central_frame(trained, source):
    folder, before = trained(source)
    kernel = of(probed(folder, "video", "code"), "video", "embedding.weight")
    assert (kernel[:, :, 2] == of(before, source, "embedding.weight")).all()
    assert not kernel[:, :, [0, 1, 3]].any()


@pytest.mark.parametrize("conversion", ["paper", "code"])
@pytest.mark.parametrize("source", ["image", "audio"])
def test_to_videos_positions_are_interpolated_to_14_x_14_and_repeated_8_times(trained, source, conversion):
    folder, before = trained(source)
    after = of(probed(folder, "video", conversion), "video", "positions")
    expected = zoomed(of(before, source, "positions")[0, 1:], GRIDS[source], (14, 14)).reshape(196, 8)
    np.testing.assert_allclose(after[0, 1:].reshape(8, 196, 8), np.tile(expected, (8, 1, 1)), atol=1e-5)


@pytest.mark.parametrize("source", ["image", "video", "audio"])
@pytest.mark.parametrize("target", ["image", "video", "audio"])
def test_the_class_token_and_its_position_come_from_the_source_as_they_are(trained, source, target):
    folder, before = trained(source)
    after = probed(folder, target)
    assert (of(after, target, "class_token") == of(before, source, "class_token")).all()
    assert (of(after, target, "positions")[:, 0] == of(before, source, "positions")[:, 0]).all()


@pytest.mark.parametrize("target", ["image", "video", "audio"])
def test_encoder_and_norm_stay_bit_by_bit(trained, target):
    folder, before = trained("image")
    after = probed(folder, target)
    shared = [name for name in after if name.startswith(("encoder.", "norm."))]
    assert len(shared) == 2 * 12 + 2
    assert all((after[name] == before[name]).all() for name in shared)


def test_adaptor_layers_go_with_the_tokenizer(trained):
    folder, before = trained("image", adaptor_layers=1)
    after = probed(folder, "audio", adaptor_layers=1)
    adaptors = [name for name in after if ".adaptors." in name]
    assert len(adaptors) == 12
    assert all((after[name] == before[name.replace("audio", "image")]).all() for name in adaptors)


def test_a_model_that_knows_the_modality_is_not_converted(trained):
    folder, before = trained("image", "video", "audio")
    for modality in GEOMETRIES:
        after = probed(folder, modality)
        assert all((after[name] == before[name]).all() for name in after)


# --- what the rules mean ----------------------------------------------------------------------------------------------


def response(kernel: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """A kernel's answer to one patch, without bias: [d]."""
    return np.tensordot(kernel.astype(np.float64), patch, patch.ndim)


def test_a_still_clip_is_answered_four_times_as_strongly_as_its_picture_by_the_papers_rule_and_once_by_the_codes(
    trained,
):
    folder, before = trained("image")
    picture = np.random.default_rng(0).normal(size=(3, 16, 16))
    clip = np.repeat(picture[:, None], 4, axis=1)
    once = response(of(before, "image", "embedding.weight"), picture)
    for conversion, times in (("paper", 4), ("code", 1)):
        kernel = of(probed(folder, "video", conversion), "video", "embedding.weight")
        np.testing.assert_allclose(response(kernel, clip), times * once, rtol=1e-6)


def test_a_videos_kernel_answers_a_picture_as_the_still_clip_of_it(trained):
    folder, before = trained("video")
    picture = np.random.default_rng(0).normal(size=(3, 16, 16))
    still = response(of(before, "video", "embedding.weight"), np.repeat(picture[:, None], 4, axis=1))
    np.testing.assert_allclose(
        response(of(probed(folder, "image"), "image", "embedding.weight"), picture), still, rtol=1e-5
    )


@pytest.mark.parametrize(("conversion", "times"), [("paper", 4), ("code", 1)])
def test_there_and_back_multiplies_the_kernel_by_the_tubelets_frames_by_the_papers_rule_only(
    trained, conversion, times
):
    folder, before = trained("image")
    there = {name: torch.from_numpy(tensor) for name, tensor in probed(folder, "video", conversion).items()}
    folder, _ = trained("video", seed=1, weights=there)
    back = of(probed(folder, "image"), "image", "embedding.weight")
    np.testing.assert_allclose(back, times * of(before, "image", "embedding.weight"), rtol=1e-6)
