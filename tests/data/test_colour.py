"""Colours against torchvision's, with a factor an example."""

import pytest
import torch
from torchvision.transforms.v2 import functional as V

from photos import photo
from polytrain.data import colour

FACTORS = [0.0, 0.6, 1.0, 1.4, 2.8]
TURNS = [-0.5, -0.2, 0.0, 0.13, 0.5]

COLOURS = {
    "saturate": (colour.saturate, V.adjust_saturation, FACTORS),
    "contrast": (colour.contrast, V.adjust_contrast, FACTORS),
    "turn_hue": (colour.turn_hue, V.adjust_hue, TURNS),
    # torchvision multiplies where the reference adds: equal to the formula.
    "brighten": (colour.brighten, lambda x, added: (x + added).clamp(0, 1), [-1.0, -32 / 255, 0.0, 0.1, 32 / 255]),
}


@pytest.mark.parametrize("shape", [(3, 18, 20), (3, 4, 18, 20)], ids=["images", "clips"])
@pytest.mark.parametrize("name", COLOURS)
def test_a_colour_is_torchvisions_with_a_factor_an_example(name, shape):
    ours, theirs, factors = COLOURS[name]
    batch = photo(len(factors), *shape) / 255
    # torchvision wants a clip's frames before its channels.
    swap = len(shape) == 4
    expected = torch.stack(
        [
            theirs(x.movedim(1, 0), factor).movedim(0, 1) if swap else theirs(x, factor)
            for x, factor in zip(batch, factors, strict=True)
        ]
    )
    torch.testing.assert_close(ours(batch.clone(), torch.tensor(factors)), expected, rtol=0, atol=2e-6)


def test_hue_of_every_kind_of_colour_is_torchvisions():
    levels = torch.linspace(0, 1, 7)
    colours = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 7, 49)
    ours = colour.turn_hue(colours.clone(), torch.tensor([0.2]))
    torch.testing.assert_close(ours, V.adjust_hue(colours, 0.2), rtol=0, atol=2e-6)
