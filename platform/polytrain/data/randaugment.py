"""RandAugment's operations on bytes [n, 3, H, W], many pictures at once (Cubuk et al., 2020, as used by ViViT).

Each equals torchvision's of its name on uint8, where there is one. Where a byte's new value depends on no other byte,
a table of 256 values is made and looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polytrain.data.augmentation import MAX_MAGNITUDE, OPERATIONS
from polytrain.data.colour import grey, mean_of_frame

CUTOUT_SIDE = 224
"""The frame side, in pixels, for which the square to cut out was made; others lose the same part."""


def in_layers(tall: Tensor, operations: np.ndarray, height: int) -> Tensor:
    """Pictures [n, 3, T * height, W] after their operations [n, layers, 4].

    In each layer, pictures with the same operation lie side by side: sorting is cheaper than scattering bytes.
    """
    place = np.arange(len(tall))  # of each example
    for layer in range(operations.shape[1]):
        kinds, group, sizes = np.unique(operations[:, layer, :2], axis=0, return_inverse=True, return_counts=True)
        order = np.argsort(group.ravel(), kind="stable")
        tall = tall.index_select(0, torch.from_numpy(place[order]).to(tall.device, non_blocking=True))
        place = np.argsort(order)
        parts, ends = list(tall.split(sizes.tolist())), np.cumsum(sizes)
        for part, (number, magnitude) in enumerate(kinds):
            name = OPERATIONS[int(number)]
            if name == "cutout":
                same = order[ends[part] - sizes[part] : ends[part]]
                parts[part] = cut_out(parts[part], operations[same, layer, 2:], height, *level(name, magnitude))
            elif name != "identity":
                parts[part] = BY_NAME[name](parts[part], *level(name, magnitude))
        tall = torch.cat(parts)
    return tall.index_select(0, torch.from_numpy(place).to(tall.device, non_blocking=True))


def level(operation: str, magnitude: float) -> tuple[float, ...]:
    """The arguments of an operation at a magnitude, as in Scenic's ViViT; rounded down where it takes whole numbers."""
    strength = magnitude / MAX_MAGNITUDE
    if operation in ("saturation", "contrast", "brightness", "sharpness"):
        return (1.8 * strength + 0.1,)
    scales = {"posterize": 4, "solarize": 256, "solarize_add": 110, "cutout": 40}
    return (int(scales[operation] * strength),) if operation in scales else ()


def autocontrast(picture: Tensor) -> Tensor:
    least, most = (plane.float() for plane in (picture.amin((-2, -1), True), picture.amax((-2, -1), True)))
    flat = most == least
    scale = torch.where(flat, 1, (most - least) * (1 / 255))
    return _look_up(picture, (_bytes(picture) - torch.where(flat, 0, least)[..., 0]) / scale[..., 0])


def equalize(picture: Tensor) -> Tensor:
    """Pillow's."""
    counts = _indices(picture).bincount(minlength=256 * picture.shape[0] * 3).view(-1, 3, 256)
    below = counts.cumsum(-1)
    last = counts.gather(-1, below.argmax(-1, keepdim=True))
    step = (picture.shape[-2] * picture.shape[-1] - last) // 255
    table = (F.pad(below[..., :-1], (1, 0)) + step // 2) // step.clamp(min=1)
    return _look_up(picture, torch.where(step == 0, _bytes(picture), table))


def invert(picture: Tensor) -> Tensor:
    return picture.bitwise_not()


def posterize(picture: Tensor, bits: int) -> Tensor:
    return picture & (256 - (1 << max(0, 8 - bits)))


def solarize(picture: Tensor, threshold: int) -> Tensor:
    table = _bytes(picture)
    return _look_up(picture, torch.where(table >= threshold, 255 - table, table))


def solarize_add(picture: Tensor, added: int) -> Tensor:
    """Brightens what is darker than 128, as the reference; torchvision has none."""
    table = _bytes(picture)
    return _look_up(picture, torch.where(table < 128, table + added, table))


def brightness(picture: Tensor, factor: float) -> Tensor:
    return _look_up(picture, _bytes(picture) * factor)


def contrast(picture: Tensor, factor: float) -> Tensor:
    """Away from the mean grey. (The reference divides the number of pixels by 256 for a mean: it blends with white.)"""
    mean = mean_of_frame(grey(picture).floor_())[..., 0]
    return _look_up(picture, _bytes(picture).mul(factor).add(mean, alpha=1 - factor))


def saturation(picture: Tensor, factor: float) -> Tensor:
    other = grey(picture).floor_()
    return picture.mul(factor).add_(other, alpha=1 - factor).clamp_(0, 255).byte()


def sharpness(picture: Tensor, factor: float) -> Tensor:
    """Away from a blur by [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13; the outermost pixels stay."""
    if min(picture.shape[-2:]) <= 2:
        return picture
    sharp = picture.float()
    inner = sharp[..., 1:-1, 1:-1]
    across = sharp[..., :-2] + sharp[..., 1:-1] + sharp[..., 2:]
    blurred = across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :]
    blurred.add_(inner, alpha=4).div_(13).round_()
    inner.add_(blurred.sub_(inner), alpha=1 - factor)
    return sharp.clamp_(0, 255).to(torch.uint8)


def _bytes(picture: Tensor) -> Tensor:
    """All that a byte can be, [256] float32."""
    return torch.arange(256, dtype=torch.float32, device=picture.device)


def _look_up(picture: Tensor, table: Tensor) -> Tensor:
    """Each byte's new value, cut to a byte, from a table that broadcasts to [n, 3, 256]."""
    table = table.clamp(0, 255).to(torch.uint8).expand(*picture.shape[:2], 256)
    return table.reshape(-1).index_select(0, _indices(picture)).view_as(picture)


def _indices(picture: Tensor) -> Tensor:
    """Where each byte stands in tables [n, 3, 256], flattened."""
    n, channels = picture.shape[:2]
    first = torch.arange(n * channels, dtype=torch.int32, device=picture.device).view(n, channels, 1, 1) * 256
    return (picture.int() + first).view(-1)


BY_NAME: Mapping[str, Callable[..., Tensor]] = {
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": invert,
    "posterize": posterize,
    "solarize": solarize,
    "solarize_add": solarize_add,
    "saturation": saturation,
    "contrast": contrast,
    "brightness": brightness,
    "sharpness": sharpness,
}


def cut_out(picture: Tensor, centres: np.ndarray, height: int, half: int) -> Tensor:
    """A black square, cut at the borders, at the same place of all frames [height, W] of a tall picture.

    `centres` [n, 2] are y and x in [0, 1), `half` is half the square's side in frames of 224 pixels; in others it is
    the same part of the shorter side.
    """
    width = picture.shape[-1]
    half = round(half * min(height, width) / CUTOUT_SIDE)
    y, across = (np.floor(centres * (height, width))).astype(np.int64).T[:, :, None]
    tall = (np.arange(height) >= y - half) & (np.arange(height) < y + half)
    wide = (np.arange(width) >= across - half) & (np.arange(width) < across + half)
    square = torch.from_numpy(tall[:, None, None, :, None] & wide[:, None, None, None]).to(picture.device)
    frames = picture.view(*picture.shape[:2], -1, height, width)
    return frames.masked_fill(square, 0).view_as(picture)
