"""The names that others give to a ViT's weights, a table each: the original .npz, timm, Hugging Face.

A rule's right side is our name without the modality: `embedding.*`, `class_token` and `positions` belong to the
source's tokenizer. `#q`, `#k`, `#v` mark the parts of a tensor that is one with us. What comes before the name of the
patch kernel is a prefix, whatever it says (`opt/target/`, `params/img/`, `module.v.`, `vit.`), and counts for no rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

HEAD = "the source's classification head"
TOKEN = "a second special token (distillation), which this model has not"


def _unchanged(name: str, tensor: Tensor) -> Tensor:
    return tensor


def _no_unstacking(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors


@dataclass(frozen=True)
class Dialect:
    """One way of naming. `kernel` is the patch embedding's name, by which a source is recognised."""

    kind: str
    kernel: str
    rules: dict[str, str]
    skipped: dict[str, str]
    """Patterns of what is left out, found anywhere in the whole name -> why."""
    norm_eps: float
    gelu: str
    to_torch: Callable[[str, Tensor], Tensor] = _unchanged
    """(our name, tensor) -> the tensor as torch lays it out."""
    unstacked: Callable[[dict[str, Tensor]], dict[str, Tensor]] = _no_unstacking


# --- the original ViT, in Flax ------------------------------------------------------------------------------------


def _flax_to_torch(name: str, tensor: Tensor) -> Tensor:
    """Flax's kernels have their outputs last, attention's are split by head: [d, heads, d / heads] and back."""
    if name == "embedding.weight":
        return tensor.movedim((-1, -2), (0, 1))
    if "qkv" in name:
        return tensor.flatten(1).T if "weight" in name else tensor.flatten()
    if name.endswith("out.weight"):
        return tensor.flatten(0, 1).T
    return tensor.T if name.endswith(("fc1.weight", "fc2.weight")) else tensor


def _layers_apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """big_vision may stack the layers of a weight along its first axis."""
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if "/encoderblock/" in name and tensor.dim():
            for layer, part in enumerate(tensor.unbind(0)):
                apart[name.replace("/encoderblock/", f"/encoderblock_{layer}/")] = part
        else:
            apart[name] = tensor
    return apart


FLAX = Dialect(
    kind="the original ViT's, in Flax's names",
    kernel="embedding/kernel",
    rules={
        r"cls": "class_token",
        r"embedding/kernel": "embedding.weight",
        r"embedding/bias": "embedding.bias",
        r"(?:Transformer/posembed_input/)?pos_embedding": "positions",
        r"Transformer/encoderblock_(\d+)/LayerNorm_0/scale": r"encoder.\1.norm1.weight",
        r"Transformer/encoderblock_(\d+)/LayerNorm_0/bias": r"encoder.\1.norm1.bias",
        r"Transformer/encoderblock_(\d+)/LayerNorm_[12]/scale": r"encoder.\1.norm2.weight",
        r"Transformer/encoderblock_(\d+)/LayerNorm_[12]/bias": r"encoder.\1.norm2.bias",
        r"Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_[01]/(q|k|v)(?:uery|ey|alue)/kernel": (
            r"encoder.\1.qkv.weight#\2"
        ),
        r"Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_[01]/(q|k|v)(?:uery|ey|alue)/bias": (
            r"encoder.\1.qkv.bias#\2"
        ),
        r"Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_[01]/out/kernel": r"encoder.\1.out.weight",
        r"Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_[01]/out/bias": r"encoder.\1.out.bias",
        r"Transformer/encoderblock_(\d+)/MlpBlock_[03]/Dense_0/kernel": r"encoder.\1.fc1.weight",
        r"Transformer/encoderblock_(\d+)/MlpBlock_[03]/Dense_0/bias": r"encoder.\1.fc1.bias",
        r"Transformer/encoderblock_(\d+)/MlpBlock_[03]/Dense_1/kernel": r"encoder.\1.fc2.weight",
        r"Transformer/encoderblock_(\d+)/MlpBlock_[03]/Dense_1/bias": r"encoder.\1.fc2.bias",
        r"Transformer/encoder_norm/scale": "norm.weight",
        r"Transformer/encoder_norm/bias": "norm.bias",
    },
    skipped={
        r"(^|/)(head|pre_logits|output_projection)/(kernel|bias)$": HEAD,
        r"^opt/(?!target/)|^(step|global_step)$|^extra/": "the source's optimizer",
    },
    norm_eps=1e-6,
    gelu="tanh",
    to_torch=_flax_to_torch,
    unstacked=_layers_apart,
)

# --- torch --------------------------------------------------------------------------------------------------------

TIMM = Dialect(
    kind="timm's names",
    kernel="patch_embed.proj.weight",
    rules={
        r"cls_token": "class_token",
        r"pos_embed": "positions",
        r"patch_embed\.proj\.(weight|bias)": r"embedding.\1",
        r"blocks\.(\d+)\.(norm1|norm2)\.(weight|bias)": r"encoder.\1.\2.\3",
        r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)": r"encoder.\1.qkv.\2",
        r"blocks\.(\d+)\.attn\.proj\.(weight|bias)": r"encoder.\1.out.\2",
        r"blocks\.(\d+)\.mlp\.(fc1|fc2)\.(weight|bias)": r"encoder.\1.\2.\3",
        r"norm\.(weight|bias)": r"norm.\1",
    },
    skipped={
        r"(^|\.)(head|head_dist|mlp_head\.\d+|pre_logits\.fc)\.(weight|bias)$": HEAD,
        r"(^|\.)dist_token$": TOKEN,
    },
    norm_eps=1e-6,
    gelu="none",
)

HUGGING_FACE = Dialect(
    kind="Hugging Face's names",
    kernel="embeddings.patch_embeddings.projection.weight",
    rules={
        r"embeddings\.cls_token": "class_token",
        r"embeddings\.position_embeddings": "positions",
        r"embeddings\.patch_embeddings\.projection\.(weight|bias)": r"embedding.\1",
        r"(?:encoder\.)?layers?\.(\d+)\.layernorm_before\.(weight|bias)": r"encoder.\1.norm1.\2",
        r"(?:encoder\.)?layers?\.(\d+)\.layernorm_after\.(weight|bias)": r"encoder.\1.norm2.\2",
        r"(?:encoder\.)?layers?\.(\d+)\.attention\.(?:attention\.)?(q|k|v)(?:uery|ey|alue|_proj)\.(weight|bias)": (
            r"encoder.\1.qkv.\3#\2"
        ),
        r"(?:encoder\.)?layers?\.(\d+)\.attention\.(?:output\.dense|o_proj)\.(weight|bias)": r"encoder.\1.out.\2",
        r"(?:encoder\.)?layers?\.(\d+)\.(?:intermediate\.dense|mlp\.fc1)\.(weight|bias)": r"encoder.\1.fc1.\2",
        r"(?:encoder\.)?layers?\.(\d+)\.(?:output\.dense|mlp\.fc2)\.(weight|bias)": r"encoder.\1.fc2.\2",
        r"layernorm\.(weight|bias)": r"norm.\1",
    },
    skipped={
        r"(^|\.)(pooler\.dense|(cls_|distillation_)?classifier(\.dense|\.layernorm)?)\.(weight|bias)$": HEAD,
        r"(^|\.)embeddings\.distillation_token$": TOKEN,
    },
    norm_eps=1e-12,
    gelu="none",
)

DIALECTS = (FLAX, TIMM, HUGGING_FACE)


def recognise(names: list[str]) -> list[tuple[Dialect, str]]:
    """The dialects in which some name is that of a patch kernel, each with the prefix before it."""
    found = []
    for dialect in DIALECTS:
        kernel = re.compile(rf"(|.*[./]){re.escape(dialect.kernel)}")
        skipped = re.compile("|".join(dialect.skipped))
        found += [(dialect, m[1]) for name in names if (m := kernel.fullmatch(name)) and not skipped.search(name)]
    return found
