"""Colours of a minibatch: torchvision's v2.functional for floats in [0, 1], with a factor an example.

Pixels are [n, 3, ..., H, W] and changed in place, factors [n]; all frames of a clip get their example's.
"""

from __future__ import annotations

import torch
from torch import Tensor


def grey(pixels: Tensor) -> Tensor:
    """Luminance, [n, 1, ...]."""
    red, green, blue = pixels.split(1, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def brighten(pixels: Tensor, added: Tensor) -> Tensor:
    return pixels.add_(_per_example(added, pixels)).clamp_(0, 1)


def saturate(pixels: Tensor, factor: Tensor) -> Tensor:
    """torchvision's adjust_saturation: away from grey."""
    return _blend(pixels, grey(pixels), _per_example(factor, pixels))


def contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    """torchvision's adjust_contrast: away from the mean grey of each frame."""
    return _blend(pixels, mean_of_frame(grey(pixels)), _per_example(factor, pixels))


def turn_hue(pixels: Tensor, turned: Tensor) -> Tensor:
    """torchvision's adjust_hue: through HSV, where a full turn is 1."""
    red, green, blue = pixels.unbind(1)
    least, most = pixels.amin(1), pixels.amax(1)  # fifteen times as fast as aminmax
    chroma = most - least
    divisor = torch.where(chroma == 0, 1, chroma)
    sixths = torch.where(
        most == red,
        (green - blue) / divisor,
        torch.where(most == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sixths.add_(_per_example(turned, sixths) * 6)
    sixths.sub_((sixths / 6).floor_(), alpha=6)
    # HSV back to RGB: how far each channel lies between the least and the most, by the hue.
    shares = (
        (sixths - 3).abs_().sub_(1),
        (sixths - 2).abs_().neg_().add_(2),
        (sixths - 4).abs_().neg_().add_(2),
    )
    for channel, share in enumerate(shares):
        torch.addcmul(least, chroma, share.clamp_(0, 1), out=pixels[:, channel])
    return pixels


def _blend(pixels: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return pixels.mul_(factor).add_(other * (1 - factor)).clamp_(0, 1)


def mean_of_frame(plane: Tensor) -> Tensor:
    """Over height and width. Of the rows' means in float64, or the last digit would depend on the share's size."""
    return plane.mean(-1, keepdim=True).mean(-2, keepdim=True, dtype=torch.float64).float()


def _per_example(values: Tensor, pixels: Tensor) -> Tensor:
    return values.to(pixels.dtype).view(-1, *[1] * (pixels.ndim - 1))
