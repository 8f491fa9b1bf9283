"""Carries out what was drawn for a minibatch (data/augmentation.py), on the device, all examples at once.

Works on what the tokenizer takes: pixels [b, 3, (T,) H, W] in [-1, 1], or standardised log-mel [b, 3, T, F]. Examples
that a change leaves out are not touched. The others are changed block by block, so that intermediates stay small: in
the processor's cache on a CPU, a few hundred megabytes on a GPU.

Colours are in data/colour.py, RandAugment's operations in data/randaugment.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from polytrain.data.augmentation import Draws
from polytrain.data.colour import brighten, contrast, grey, saturate, turn_hue
from polytrain.data.randaugment import in_layers

BLOCK_VALUES = {"cpu": 2**19, "cuda": 2**26}
"""Numbers of a block: 2 MB keep in a core's cache; 256 MB keep a GPU busy and its memory free."""


def apply(x: Tensor, draws: Draws) -> Tensor:
    """x [b, 3, ...] with the changes drawn for its b examples; x itself may be changed on the way."""
    for change, values in draws.items():
        x = CHANGES[change](x, values)
    return x


# --- changes, by their names in Draws -----------------------------------------------------------------------------


def flip(x: Tensor, flipped: np.ndarray) -> Tensor:
    """Mirrors left to right."""
    rows = _rows(flipped, x.device)
    if len(rows):
        x.index_copy_(0, rows, x.index_select(0, rows).flip(-1))
    return x


def jitter(x: Tensor, colour: np.ndarray) -> Tensor:
    """Brightness, saturation, contrast, hue, in this order, as DMVR's `color_default_augm`.

    It adds to the brightness, and so do we; torchvision multiplies. Its saturation is HSV's and its contrast relative
    to each channel's mean; ours are torchvision's, relative to grey. It clips at the end, torchvision and we each time.
    """

    def change(pixels: Tensor, values: Tensor) -> Tensor:
        _, added, saturated, contrasted, turned = values.unbind(1)
        pixels = brighten(pixels, added)
        pixels = saturate(pixels, saturated)
        pixels = contrast(pixels, contrasted)
        return turn_hue(pixels, turned)

    return _unit_blocks(x, colour[:, 0] > 0, colour, change)


def to_grey(x: Tensor, chosen: np.ndarray) -> Tensor:
    """Grey in all three channels."""
    return _unit_blocks(x, chosen, chosen, lambda pixels, _: grey(pixels).expand_as(pixels))


def operate(x: Tensor, operations: np.ndarray) -> Tensor:
    """RandAugment on bytes, a clip's frames below each other as one tall picture, as in the reference."""
    busy = np.flatnonzero(operations[..., 0].any(axis=1))
    many = max(1, BLOCK_VALUES[x.device.type] // x.shape[1:].numel())
    for some in (busy[first : first + many] for first in range(0, len(busy), many)):
        rows = torch.from_numpy(some).to(x.device, non_blocking=True)
        # Pixels are n / 127.5 - 1 for a byte n: rounding finds it exactly.
        tall = x.index_select(0, rows).mul_(127.5).add_(128).to(torch.uint8).flatten(2, -2)
        tall = in_layers(tall, operations[some], x.shape[-2])
        x.index_copy_(0, rows, tall.to(x.dtype).div_(127.5).sub_(1).view(len(some), *x.shape[1:]))
    return x


def hide(x: Tensor, stretches: np.ndarray, *, axis: int) -> Tensor:
    """SpecAugment: stretches of time (axis 2) or frequency (axis 3) become 0, the mean of standardised log-mel.

    x [b, 3, T, F], whose three channels are one.
    """
    place = np.arange(x.shape[axis])
    hidden = ((place >= stretches[..., :1]) & (place < stretches[..., 1:])).any(axis=1)
    mask = torch.from_numpy(hidden).to(x.device, non_blocking=True)
    mask = mask[:, None, :, None] if axis == 2 else mask[:, None, None, :]
    return x[:, :1].masked_fill_(mask, 0.0).expand_as(x)


CHANGES: Mapping[str, Callable[[Tensor, np.ndarray], Tensor]] = {
    "flip": flip,
    "colour": jitter,
    "grey": to_grey,
    "operations": operate,
    "time_masks": partial(hide, axis=2),
    "frequency_masks": partial(hide, axis=3),
}


# --- blocks -----------------------------------------------------------------------------------------------------------


def _unit_blocks(
    x: Tensor, chosen: np.ndarray, values: np.ndarray, change: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The chosen examples changed: `change` gets frames [n, 3, t, H, W] in [0, 1] and their rows of `values`."""
    if not chosen.any():
        return x
    frames = x if x.ndim == 5 else x.unsqueeze(2)
    _, channels, count, height, width = frames.shape
    frame = channels * height * width
    block = BLOCK_VALUES[x.device.type]
    at_once = max(1, min(count, block // frame))
    rows = _rows(chosen, x.device)
    parameters = torch.as_tensor(values[chosen]).to(x.device, non_blocking=True)
    many = max(1, block // (frame * at_once))
    for some, of_these in zip(rows.split(many), parameters.split(many), strict=True):
        for first in range(0, count, at_once):
            part = frames[:, :, first : first + at_once]
            pixels = part.index_select(0, some).add_(1).mul_(0.5)
            part.index_copy_(0, some, change(pixels, of_these).mul(2).sub_(1))
    return x


def _rows(chosen: np.ndarray, device: torch.device) -> Tensor:
    """Which rows are chosen, known without waiting for the device."""
    return torch.from_numpy(np.flatnonzero(chosen)).to(device, non_blocking=True)
