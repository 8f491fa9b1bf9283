"""From an input to tokens, one tokenizer a modality (PolyViT, section 4.1).

A tokenizer owns everything that is private to a modality: patch or tubelet embedding, class token, positional
embedding and, if there are any, the adaptor layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polytrain.modalities import CHANNELS, Geometry
from polytrain.model.encoder import Layers


class Tokenizer(nn.Module):
    """Embeds the patches of one modality. The same class serves all three: a patch has two axes or three."""

    def __init__(self, geometry: Geometry, width: int, adaptors: Layers) -> None:
        super().__init__()
        self.geometry = geometry
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[len(geometry.patch_shape)]
        self.embedding = convolution(CHANNELS, width, kernel_size=geometry.patch_shape, stride=geometry.patch_shape)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, geometry.positions, width))
        self.adaptors = adaptors
        nn.init.normal_(self.positions, std=0.02)
        lecun_normal_(self.embedding.weight)  # the default of the reference's convolutions
        nn.init.zeros_(self.embedding.bias)

    def embed(self, x: Tensor) -> Tensor:
        """x [B, 3, *input_shape] -> [B, positions, d]: patches row-major behind the class token, positions added."""
        # Stride equals kernel: the convolution is one matrix product over patches. As a matrix product it is
        # several times faster on a CPU than conv3d, and needs no memory format on a GPU.
        patches = patchify(x, self.geometry.patch_shape)
        tokens = nn.functional.linear(patches, self.embedding.weight.flatten(1), self.embedding.bias)
        return torch.cat([self.class_token.to(tokens.dtype).expand(x.shape[0], -1, -1), tokens], dim=1) + self.positions

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """x [B, 3, *input_shape] -> [B, positions, d], adaptor layers applied; keep [adaptor_layers, 2, B]."""
        return self.adaptors(self.embed(x), keep)


def patchify(x: Tensor, patch_shape: tuple[int, ...]) -> Tensor:
    """x [B, C, *input_shape] -> [B, patches, C * prod(patch_shape)], patches and their contents row-major."""
    batch, channels = x.shape[:2]
    split = [batch, channels]
    for size, patch in zip(x.shape[2:], patch_shape, strict=True):
        split += [size // patch, patch]
    axes = len(patch_shape)
    order = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
    return x.reshape(split).permute(order).reshape(batch, -1, channels * torch.Size(patch_shape).numel())


def lecun_normal_(weight: Tensor) -> Tensor:
    """Fills `weight` [outputs, *inputs] with normals of variance 1 / inputs, cut at two deviations, as Flax does."""
    # A normal cut at +-2 has deviation 0.8796: divide, so that the variance is right after the cut.
    std = weight[0].numel() ** -0.5 / 0.87962566103423978
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
