"""The model that is probed, without heads: what no probe changes.

A model of one modality that is probed on another takes that one's tokenizer from its own (PolyViT, appendix on linear
probes): between images and sounds the patch kernel stays and positions are interpolated; from videos the kernel is
summed, and positions averaged, over time; to videos the kernel is repeated over the frames (or put in the central one,
as the code does), and positions over time. `model.pretrained.fitting` has these rules. Repeated, a kernel answers a
still clip of t frames t times as strongly as a picture, and there and back it comes out t times as large.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import safetensors.torch
from torch import Tensor

from polytrain.forward import Portable
from polytrain.model.architecture import Architecture
from polytrain.model.polyvit import on_meta
from polytrain.recipe import Model
from polytrain.training.initial import put_in_place


@dataclass(frozen=True, eq=False)
class Trunk:
    """Tokenizers, adaptors and encoder."""

    architecture: Architecture  # without tasks
    weights: Mapping[str, Tensor]

    def portable(self, precision: str) -> Portable:
        """As it travels to where it is applied."""
        file = np.frombuffer(safetensors.torch.save(dict(self.weights)), np.uint8)
        return Portable(self.architecture, file, precision)

    @functools.lru_cache(maxsize=3)  # noqa: B019, a command has one trunk
    def digest(self, modality: str) -> str:
        """Of all that decides the features of a modality: weights, LayerNorm's epsilon, GELU, geometry."""
        a = self.architecture
        told = [a.norm_eps, a.gelu, a.heads, a.adaptor_layers, repr(a.modalities[modality])]
        digest = hashlib.sha256(repr(told).encode())
        others = tuple(f"tokenizers.{name}." for name in a.modalities if name != modality)
        for name in sorted(self.weights):
            if not name.startswith(others):
                digest.update(name.encode())
                digest.update(np.ascontiguousarray(self.weights[name].numpy()))
        return digest.hexdigest()


def open_trunk(settings: Model, architecture: Architecture) -> Trunk:
    """Read `settings.init` into a model of this architecture. Raises WeightsError."""
    architecture = replace(architecture, tasks={})
    model = on_meta(architecture).to_empty(device="cpu")
    report = put_in_place(settings, model, {})
    if report.fresh:
        raise ValueError(f"{report.fresh[0].place} got nothing: `judge` would have said so")
    return Trunk(architecture, {name: tensor.contiguous() for name, tensor in model.state_dict().items()})
