"""PolyViT: tokenizers, adaptors, one shared encoder, heads (PolyViT, section 4.1)."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from polytrain.model.architecture import Architecture, Head
from polytrain.model.encoder import Block, Layers, drop_rates, keep_masks
from polytrain.model.tokenizers import Tokenizer, lecun_normal_


class PolyViT(nn.Module):
    """One transformer for every task; a forward pass is one task's minibatch.

    Only the heads are task-specific; a tokenizer with its adaptors is shared by all tasks of a modality; the encoder
    and its final LayerNorm by all tasks.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = self.architecture = architecture

        def layers(count: int) -> Layers:
            return Layers(Block(a.width, a.heads, a.mlp_width, norm_eps=a.norm_eps, gelu=a.gelu) for _ in range(count))

        self.tokenizers = nn.ModuleDict(
            {name: Tokenizer(geometry, a.width, layers(a.adaptor_layers)) for name, geometry in a.modalities.items()}
        )
        self.encoder = layers(a.depth - a.adaptor_layers)
        self.norm = nn.LayerNorm(a.width, eps=a.norm_eps)
        self.heads = nn.ModuleDict()
        for task, head in a.tasks.items():
            # Past ModuleDict's own check: a task may be called "train" or "type", which modules have as attributes.
            self.heads._modules[task] = new_head(a.width, head)

    def forward(self, task: str, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits [B, classes] of `task` for x [B, 3, *input_shape] of its modality; keep [depth, 2, B] or None."""
        return self.heads[task](self.features(self.architecture.tasks[task].modality, x, keep))

    def features(self, modality: str, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """The class token after the final LayerNorm, [B, d]."""
        private = self.architecture.adaptor_layers
        z = self.tokenizers[modality](x, None if keep is None else keep[:private])
        z = self.encoder(z, None if keep is None else keep[private:], read=1)
        # The norm is per token: normalising the one that is read out is enough.
        return self.norm(z[:, 0])

    def keep_masks(self, uniform: Tensor, drop_path: float) -> Tensor:
        """Stochastic-depth masks [depth, 2, B] from uniform draws of that shape."""
        return keep_masks(uniform, drop_rates(drop_path, self.architecture.depth, self.architecture.adaptor_layers))

    def used_by(self, task: str) -> list[nn.Parameter]:
        """The parameters that a step of `task` gives a gradient, in a fixed order: no idle tokenizer, no idle head,
        nothing frozen."""
        modality = self.architecture.tasks[task].modality
        parts = (self.tokenizers[modality], self.encoder, self.norm, self.heads[task])
        return [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]

    def freeze_but(self, tasks: Collection[str]) -> None:
        """Nothing but the heads of these tasks has a gradient from now on: no backward pass goes beyond them."""
        self.requires_grad_(False)
        for task in tasks:
            self.heads[task].requires_grad_(True)


def new_head(width: int, head: Head) -> nn.Linear:
    """A linear head, zeros or LeCun normal, bias zeros."""
    linear = nn.Linear(width, head.classes)
    nn.init.zeros_(linear.bias)
    if head.init == "zeros":
        nn.init.zeros_(linear.weight)
    elif head.init == "lecun_normal":
        lecun_normal_(linear.weight)
    else:
        raise ValueError(f"head init {head.init!r}: known are zeros and lecun_normal")
    return linear


def parameters_by_part(model: PolyViT) -> dict[str, int]:
    """Parameter counts: encoder (final LayerNorm included), each tokenizer, each head, total."""

    def count(*modules: nn.Module) -> int:
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    parts = {"encoder": count(model.encoder, model.norm)}
    parts |= {f"tokenizer {name}": count(tokenizer) for name, tokenizer in model.tokenizers.items()}
    parts |= {f"head {task}": count(head) for task, head in model.heads.items()}
    return parts | {"total": sum(parts.values())}


def on_meta(architecture: Architecture) -> PolyViT:
    """The model without memory for its weights: to count and to name, at once, also at size large."""
    with torch.device("meta"):
        return PolyViT(architecture)
