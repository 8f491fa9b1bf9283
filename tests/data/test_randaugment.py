"""RandAugment's operations against torchvision's on bytes."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as V

from photos import photo, pixels
from polytrain.data import augment
from polytrain.data.augment import apply
from polytrain.data.augmentation import OPERATIONS
from polytrain.data.randaugment import BY_NAME, level, solarize_add

pytestmark = pytest.mark.usefixtures("one_thread")


THEIRS = {
    "autocontrast": V.autocontrast,
    "equalize": V.equalize,
    "invert": V.invert,
    "posterize": lambda x, bits: V.posterize(x, bits),
    "solarize": lambda x, threshold: V.solarize(x, threshold) if threshold < 256 else x,
    "saturation": V.adjust_saturation,
    "contrast": V.adjust_contrast,
    "brightness": V.adjust_brightness,
    "sharpness": V.adjust_sharpness,
}


@pytest.mark.parametrize("magnitude", [1, 5, 9.5, 15, 20])
@pytest.mark.parametrize("name", THEIRS)
def test_an_operation_on_bytes_is_torchvisions(name, magnitude):
    batch = photo(3, 3, 40, 30)
    arguments = level(name, magnitude)
    expected = torch.stack([THEIRS[name](picture, *arguments) for picture in batch])
    differ = (BY_NAME[name](batch.clone(), *arguments).int() - expected.int()).abs()
    assert differ.max() <= 1, "by rounding at most"
    assert (differ > 0).float().mean() <= 1e-3


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_picture_of_one_value_stays_as_it_is(name, value):
    flat = torch.full((2, 3, 9, 9), value, dtype=torch.uint8)
    assert torch.equal(BY_NAME[name](flat.clone()), flat)


def test_solarize_add_brightens_what_is_dark_as_the_reference():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    after = solarize_add(values.contiguous(), 165)[0, 0].flatten().tolist()
    assert after == [min(255, v + 165) if v < 128 else v for v in range(256)]


@pytest.mark.parametrize(
    ("name", "magnitude", "arguments"),
    [
        ("contrast", 15, (2.8,)),
        ("sharpness", 20, (3.7,)),
        ("posterize", 15, (6,)),
        ("posterize", 20, (8,)),
        ("solarize", 5, (128,)),
        ("solarize_add", 15, (165,)),
        ("cutout", 15, (60,)),
        ("invert", 15, ()),
    ],
)
def test_levels_are_the_references(name, magnitude, arguments):
    assert level(name, magnitude) == pytest.approx(arguments)


def drawn(*layers, magnitude=15.0, centre=(0.5, 0.5)):
    """operations [1, layers, 4] by name."""
    return np.array([[[OPERATIONS.index(name), magnitude, *centre] for name in layers]], float)


@pytest.mark.parametrize("block", [1, 10**9], ids=["example by example", "all at once"])
def test_layers_are_applied_in_turn_to_a_clip_as_one_tall_picture(block, monkeypatch):
    monkeypatch.setitem(augment.BLOCK_VALUES, "cpu", block)
    layers = [
        ("equalize", "invert"), ("invert", "equalize"), ("identity", "identity"),
        ("contrast", "sharpness"), ("identity", "autocontrast"), ("contrast", "invert"),
    ]  # fmt: skip
    clips = photo(len(layers), 3, 4, 20, 16)
    after = apply(pixels(clips), {"operations": np.concatenate([drawn(*names) for names in layers])})
    for names, clip, got in zip(layers, clips, after, strict=True):
        tall = clip.flatten(1, 2)
        for name in names:
            tall = tall if name == "identity" else THEIRS[name](tall, *level(name, 15))
        differ = (got + 1) * 127.5 - tall.view(clip.shape)
        assert differ.abs().max() < 1.01
        assert (differ.abs() > 0.01).float().mean() < 1e-3


def test_identity_leaves_every_bit():
    batch = pixels(photo(2, 3, 20, 16))
    after = apply(batch.clone(), {"operations": np.repeat(drawn("identity", "identity"), 2, axis=0)})
    assert torch.equal(after, batch)


@pytest.mark.parametrize(
    ("centre", "rows", "columns"),
    [((0.5, 0.5), (4, 12), (2, 10)), ((0.0, 0.0), (0, 4), (0, 4)), ((0.99, 0.5), (11, 16), (2, 10))],
)
def test_cutout_blackens_one_square_in_all_frames(centre, rows, columns):
    clip = torch.ones(1, 3, 2, 16, 12)
    after = apply(clip, {"operations": drawn("cutout", magnitude=20, centre=centre)})
    expected = torch.ones(1, 3, 2, 16, 12)
    expected[..., slice(*rows), slice(*columns)] = -1  # half the side is 80 * 12 / 224 = 4
    assert torch.equal(after, expected)
