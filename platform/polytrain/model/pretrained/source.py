"""What a source of weights is once its names are ours: as though it were a PolyViT of its own modalities."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Source:
    """Weights to start from, by the names that a PolyViT of this depth would give them (its `state_dict`).

    Positions have the class token's slot first, one slot for it and none for other special tokens.
    """

    kind: str
    """What published it, for the report."""
    tensors: dict[str, Tensor]
    origin: dict[str, tuple[str, ...]]
    """Our name -> the names in the file."""
    grids: dict[str, tuple[int, ...] | None]
    """Modality -> tokens along each axis; None where neither the file nor a config.json says so."""
    norm_eps: float = 1e-6
    gelu: str = "tanh"
    heads: int | None = None
    """Attention heads, where the source says how many."""
    adaptor_layers: int = 0
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    """Our name -> what was done to the tensor beyond laying it out."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Name in the file -> why it is not wanted, by a rule."""
    remarks: tuple[str, ...] = ()
    """What a user should know beyond the tensors."""
    strangers: list[str] = field(default_factory=list)
    """Names in the file that mean nothing to us."""

    @property
    def depth(self) -> int:
        """Layers that an input passes."""
        shared = {int(name.split(".")[1]) for name in self.tensors if name.startswith("encoder.")}
        return self.adaptor_layers + len(shared)

    @property
    def width(self) -> int:
        """The hidden width."""
        return self.tensors[f"tokenizers.{next(iter(self.grids))}.embedding.weight"].shape[0]

    @property
    def mlp_width(self) -> int | None:
        """The hidden width of the MLPs, None where there are none."""
        return next((len(tensor) for name, tensor in self.tensors.items() if name.endswith(".fc1.bias")), None)
