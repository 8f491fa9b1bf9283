"""One optimizer and one state for all tasks (PolyViT, section 4.2: "a single momentum state")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def make_optimizer(
    model: nn.Module,
    *,
    name: str,
    momentum: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """SGD with momentum (m <- g + momentum * m; theta <- theta - lr * m, the reference's form) or AdamW.

    Idle parameters, the tokenizers and heads that a step does not use, differ: SGD gives them zero gradients, so that
    their momentum goes on moving them as in the reference; AdamW passes over them. Weight decay is for kernels only.
    """
    kernels, others = [], []
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue  # frozen: neither momentum nor weight decay may touch it
        kernel = parameter.ndim >= 2 and not key.endswith(("class_token", "positions"))
        (kernels if kernel else others).append(parameter)
    groups = [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    # Rates are set before every step; fused kernels do one pass over memory where torch has them.
    if name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True)
    elif name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)
    else:
        raise ValueError(f"optimizer {name!r}: known are sgd and adamw")
    return optimizer


def clear_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Before a step: zeros where idle parameters keep moving (SGD), nothing where they are passed over (AdamW)."""
    if not isinstance(optimizer, torch.optim.SGD):
        optimizer.zero_grad(set_to_none=True)
        return
    missing = [p for group in optimizer.param_groups for p in group["params"] if p.grad is None]
    for parameter in missing:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.zero_grad(set_to_none=False)


def update(
    optimizer: torch.optim.Optimizer, used: Sequence[nn.Parameter], lr: float, clip_norm: float | None
) -> Tensor:
    """Clip the gradient of the `used` parameters to a global norm and take the step. Returns the norm before clipping.

    Idle parameters have no gradient or zeros, so the norm over the used ones is the whole norm.
    """
    gradients = [parameter.grad for parameter in used]
    norm = nn.utils.get_total_norm(gradients)
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(used, clip_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return norm
