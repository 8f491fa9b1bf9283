"""The transformer layers, shared and private alike (PolyViT, section 3.1; An Image is Worth 16x16 Words).

Shape letters: B examples, N tokens, d width, h heads, m MLP width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """One pre-norm layer: y = MSA(LN(z)) + z;  z' = MLP(LN(y)) + y."""

    def __init__(self, width: int, heads: int, mlp_width: int, *, norm_eps: float = 1e-6, gelu: str = "tanh") -> None:
        super().__init__()
        self.heads = heads
        self.gelu = gelu
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.fc1 = nn.Linear(width, mlp_width)
        self.fc2 = nn.Linear(mlp_width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform kernels, zero attention biases, MLP biases N(0, 1e-6), as the reference code initialises."""
        width = self.out.in_features
        # One fused matrix: each of Q, K and V is initialised as the width x width matrix that it is.
        for part in self.qkv.weight.split(width):
            nn.init.xavier_uniform_(part)
        nn.init.zeros_(self.qkv.bias)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        for linear in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)

    def forward(self, z: Tensor, keep: Tensor | None = None, read: int | None = None) -> Tensor:
        """z [B, N, d] -> [B, N, d], or [B, read, d] where only the first `read` tokens of the result are wanted.

        `keep` [2, B] of zeros and ones switches the attention and the MLP branch of each example on or off
        (stochastic depth); None keeps all.
        """
        attended = self.attention(self.norm1(z), read)
        z = z[:, :read] + (attended if keep is None else attended * keep[0, :, None, None].to(attended.dtype))
        fed = self.fc2(F.gelu(self.fc1(self.norm2(z)), approximate=self.gelu))
        return z + (fed if keep is None else fed * keep[1, :, None, None].to(fed.dtype))

    def attention(self, z: Tensor, read: int | None = None) -> Tensor:
        """Multi-head self-attention, [B, N, d] -> [B, N, d]; [B, read, d] where only the first `read` tokens ask."""
        batch, tokens, width = z.shape
        q, k, v = self.qkv(z).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q[:, :, :read], k, v).transpose(1, 2).flatten(2))


class Layers(nn.ModuleList):
    """A stack of blocks with their stochastic-depth rates."""

    def forward(self, z: Tensor, keep: Tensor | None = None, read: int | None = None) -> Tensor:
        """z [B, N, d] -> [B, N, d]; keep [layers, 2, B] or None.

        Where the caller reads only the first `read` tokens, the last layer computes only those, [B, read, d]: they
        attend to all tokens, but what the others would have become is used by nobody. At depth 4 that spares a fifth
        of a step, in the forward and in the backward pass, and changes neither the result nor any gradient.
        """
        for index, block in enumerate(self):
            last = index == len(self) - 1
            z = block(z, None if keep is None else keep[index], read if last else None)
        return z


def drop_rates(drop_path: float, depth: int, adaptor_layers: int) -> list[float]:
    """The probability that a branch of each layer is dropped, adaptors first, then shared layers.

    A linear ramp p * l / max(n - 1, 1). The adaptors ramp over their own stack (n = adaptor_layers); the shared layers
    go by their index in the whole path (l = adaptor_layers..depth-1, n = depth), so the ramp restarts where they
    begin: a quirk of the reference code that is kept.
    """
    adaptors = [drop_path * layer / max(adaptor_layers - 1, 1) for layer in range(adaptor_layers)]
    shared = [drop_path * layer / max(depth - 1, 1) for layer in range(adaptor_layers, depth)]
    return adaptors + shared


def keep_masks(uniform: Tensor, rates: list[float]) -> Tensor:
    """Masks of ones (keep) and zeros (drop), [layers, 2, B], from uniform draws in [0, 1) of that shape."""
    return (uniform >= torch.tensor(rates, device=uniform.device, dtype=uniform.dtype)[:, None, None]).float()
