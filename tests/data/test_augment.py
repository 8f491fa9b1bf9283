"""Changes on the device against torchvision's and torchaudio's, on the same parameters."""

import numpy as np
import pytest
import torch
import torchaudio.functional
from torchvision.transforms.v2 import functional as V

from photos import photo, pixels
from polytrain.data import augment
from polytrain.data.augment import apply

pytestmark = pytest.mark.usefixtures("one_thread")


def test_grey_is_torchvisions():
    batch = photo(2, 3, 18, 20)
    after = apply(pixels(batch), {"grey": np.array([False, True])})
    expected = V.rgb_to_grayscale(batch[1] / 255, 3) * 2 - 1
    torch.testing.assert_close(after[1], expected, rtol=0, atol=1e-6)
    assert torch.equal(after[0], pixels(batch)[0])


def jittered_by_torchvision(x, brightness, saturation, contrast, hue):
    x = ((x + 1) / 2 + brightness).clamp(0, 1)
    x = V.adjust_hue(V.adjust_contrast(V.adjust_saturation(x, saturation), contrast), hue)
    return x * 2 - 1


@pytest.mark.parametrize("shape", [(3, 18, 20), (3, 5, 18, 20)], ids=["images", "clips"])
@pytest.mark.parametrize("block", [1, 3 * 18 * 20 * 3, 10**9], ids=["frame by frame", "three frames", "all at once"])
def test_jitter_is_brightness_saturation_contrast_hue_in_this_order(shape, block, monkeypatch):
    monkeypatch.setitem(augment.BLOCK_VALUES, "cpu", block)
    batch = pixels(photo(4, *shape))
    drawn = np.array(
        [[1, 0.1, 0.6, 1.4, 0.2], [0, 0.1, 0.6, 1.4, 0.2], [1, -0.12, 1.3, 0.7, -0.1], [1, 0, 1, 1, 0]], np.float32
    )
    after = apply(batch.clone(), {"colour": drawn})
    for example, (on, *factors) in enumerate(drawn.tolist()):
        frames = batch[example].movedim(1, 0) if len(shape) == 4 else batch[example]
        expected = jittered_by_torchvision(frames, *factors) if on else frames
        expected = expected.movedim(0, 1) if len(shape) == 4 else expected
        torch.testing.assert_close(after[example], expected, rtol=0, atol=1e-5)
    assert torch.equal(after[1], batch[1]), "left out is untouched, to the last bit"


def test_a_still_clip_stays_still():
    clip = pixels(photo(1, 3, 1, 18, 20)).expand(1, 3, 6, 18, 20).clone()
    drawn = np.array([[1, 0.1, 0.6, 1.4, 0.2]], np.float32)
    after = apply(clip, {"flip": np.array([True]), "colour": drawn, "grey": np.array([True])})
    assert torch.equal(after, after[:, :, :1].expand_as(after))


@pytest.mark.parametrize("shape", [(3, 6, 8), (3, 4, 6, 8)], ids=["images", "clips"])
def test_flip_is_torchvisions_for_those_drawn(shape):
    batch = pixels(photo(3, *shape))
    after = apply(batch.clone(), {"flip": np.array([True, False, True])})
    expected = torch.stack([V.horizontal_flip(batch[0]), batch[1], V.horizontal_flip(batch[2])])
    assert torch.equal(after, expected)


# --- SpecAugment ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axis", "change", "widest"), [(2, "time_masks", 19), (3, "frequency_masks", 12)])
def test_masks_are_torchaudios_on_the_same_draws(axis, change, widest):
    spectrograms = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 1, 80, 32)).astype(np.float32))
    torch.manual_seed(3)
    width = torch.rand(6, 1) * widest
    first = (torch.rand(6, 1) * (spectrograms.shape[axis] - width)).long()
    masks = torch.stack([first, first + width.long()], dim=-1).numpy()
    torch.manual_seed(3)
    expected = torchaudio.functional.mask_along_axis_iid(spectrograms, widest, 0.0, axis)
    after = apply(spectrograms.clone().expand(-1, 3, -1, -1), {change: masks})
    assert torch.equal(after, expected.expand(-1, 3, -1, -1))


def test_several_masks_hide_what_any_of_them_hides():
    after = apply(torch.ones(1, 3, 10, 4), {"time_masks": np.array([[[0, 2], [1, 4], [7, 7]]])})
    assert after[0, 0, :, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]


def test_nothing_drawn_changes_nothing():
    x = torch.randn(2, 3, 4, 4)
    assert apply(x, {}) is x


@pytest.mark.parametrize("change", ["flip", "grey", "colour", "operations"])
def test_a_share_without_examples_passes(change):
    values = {"flip": np.empty(0, bool), "grey": np.empty(0, bool), "colour": np.empty((0, 5), np.float32)}
    draws = {change: values.get(change, np.empty((0, 2, 4)))}
    assert apply(torch.empty(0, 3, 8, 8), draws).shape == (0, 3, 8, 8)
