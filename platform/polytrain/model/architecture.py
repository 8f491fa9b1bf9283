"""The numbers that make a model, without torch: the driver counts and plans with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from polytrain.modalities import MODALITIES, Geometry


@dataclass(frozen=True)
class Head:
    """A task as the model sees it: which modality it reads and how many classes it has."""

    modality: str
    classes: int
    init: str = "zeros"  # zeros | lecun_normal (PolyViT, Table 6: image heads LeCun normal, the others zeros)


@dataclass(frozen=True)
class Architecture:
    """The numbers that make a PolyViT. `depth` counts all layers an input passes, `adaptor_layers` the private ones."""

    depth: int
    width: int
    heads: int
    mlp_width: int
    adaptor_layers: int = 0
    norm_eps: float = 1e-6
    gelu: str = "tanh"  # tanh (Flax) | none (exact): weights of other people bring their own
    modalities: Mapping[str, Geometry] = field(default_factory=dict)
    tasks: Mapping[str, Head] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As dicts, lists and numbers: a checkpoint's state.json holds it."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Architecture:
        """What `plain` gave, also after a way through JSON. Raises TypeError, KeyError or ValueError."""
        geometries = {
            name: MODALITIES[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in keys.items()})
            for name, keys in plain["modalities"].items()
        }
        heads = {name: Head(**keys) for name, keys in plain["tasks"].items()}
        return cls(**{**plain, "modalities": geometries, "tasks": heads})


def forward_flops(architecture: Architecture, task: str) -> int:
    """FLOPs of one example's forward pass, a multiply-add counted as two: L(24 N d^2 + 4 N^2 d) + 2 P c d + 2 d C
    for MLP width 4d; norms, softmax and biases are left out, as is customary. All N tokens count in every layer, as
    in published figures, although the last layer computes the class token alone (`Layers.forward`)."""
    a, head = architecture, architecture.tasks[task]
    geometry = a.modalities[head.modality]
    n = geometry.positions
    layer = 2 * n * (4 * a.width**2 + 2 * a.width * a.mlp_width) + 4 * n**2 * a.width
    return a.depth * layer + 2 * geometry.patches * geometry.patch_inputs * a.width + 2 * a.width * head.classes
