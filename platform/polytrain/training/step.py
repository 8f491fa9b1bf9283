"""The arithmetic of a training step: targets, mixup, loss, gradients over workers. Needs torch alone.

A worker holds a share of the minibatch. Its loss is the share's sum divided by the size of the WHOLE minibatch, so the
sum over workers of losses, and of gradients, is that of the minibatch, however unevenly it was dealt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


def make_targets(labels: Sequence[Sequence[int]], classes: int, device: torch.device | str) -> Tensor:
    """Classes of each example as ones in [b, classes] float32."""
    targets = torch.zeros(len(labels), classes)
    rows = [row for row, of_example in enumerate(labels) for _ in of_example]
    columns = [label for of_example in labels for label in of_example]
    targets[rows, columns] = 1.0
    return targets.to(device, non_blocking=True)


def smoothed(targets: Tensor, smoothing: float) -> Tensor:
    """Label smoothing: `smoothing` of each target spread evenly over all classes (ViViT: y * (1 - a) + a / C).

    Mixup's targets may be smoothed before or after they are mixed: it is the same.
    """
    return targets * (1 - smoothing) + smoothing / targets.shape[1] if smoothing else targets


def mix_mirrored(x: Tensor, weight: float) -> Tensor:
    """Mixup with the mirrored example: weight * x + (1 - weight) * x reversed along the batch. Partners i and B-1-i are
    in one share, in ascending order, so reversing the share mirrors the minibatch."""
    return x if weight == 1.0 else weight * x + (1.0 - weight) * x.flip(0)


def task_loss(logits: Tensor, targets: Tensor, kind: str, minibatch: int) -> Tensor:
    """A share's part of the minibatch's mean loss, a scalar in float32.

    softmax: cross-entropy; sigmoid: binary cross-entropy summed over classes (PolyViT's reference for AudioSet).
    """
    logits = logits.float()
    if kind == "softmax":
        return F.cross_entropy(logits, targets, reduction="sum") / minibatch
    if kind == "sigmoid":
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / minibatch
    raise ValueError(f"loss {kind!r}: known are softmax and sigmoid")


def add_gradients(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    """Add to the gradients that the parameters have so far."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def sum_over_workers(parameters: Sequence[nn.Parameter], numbers: Tensor) -> Tensor:
    """Sum the gradients of `parameters`, and a vector of `numbers` beside them, over all workers in one all-reduce.

    Only what the step used travels: every rank runs the same task, so all agree on the list. Gradients are replaced in
    place; the summed numbers are returned. Alone in the world, nothing happens.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return numbers
    gradients = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients] + [numbers.to(gradients[0].dtype)])
    dist.all_reduce(flat)
    sizes = [gradient.numel() for gradient in gradients]
    *summed, numbers = flat.split([*sizes, len(numbers)])
    for parameter, total in zip(parameters, summed, strict=True):
        parameter.grad = total.view_as(parameter)
    return numbers
