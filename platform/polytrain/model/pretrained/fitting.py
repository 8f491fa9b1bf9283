"""From a `Source` to the weights of a model, by PolyViT's rules of starting from a pretrained ViT (and its code's).

Encoder: block by block; adaptor layers get the first layers, every modality the same where the source has no own, so
that a model with adaptors computes at the start what one without computes. Tokenizers: class token to every modality;
positions interpolated bilinearly with aligned corners, tiled over time; patch kernels as they are, for video inflated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from polytrain.model.polyvit import PolyViT
from polytrain.model.pretrained.files import WeightsError
from polytrain.model.pretrained.report import KINDS, Entry, Report, allowed
from polytrain.model.pretrained.source import Source

DONORS = {
    "image": ("image", "video", "audio"),
    "video": ("video", "image", "audio"),
    "audio": ("audio", "image", "video"),
}
"""Whose tokenizer a modality takes: its own, else the nearest that the source has."""

TUBELETS = ("central", "inflate", "repeat", "random")
MOST_FAULTS = 12
"""Lines of an error; a model of another depth has hundreds of tensors that do not fit."""


def fit(
    model: PolyViT,
    source: Source,
    *,
    place: str,
    tubelet: str = "central",
    allow: Sequence[str] = (),
    classes: Mapping[str, Sequence[str]] | None = None,
) -> Report:
    """Put a source's weights into a model, and say what went where.

    `tubelet` makes a video kernel from an image's: central (ViViT's central frame), inflate (the same in every frame,
    divided by their number), repeat (undivided) or random (left fresh). `allow` has patterns of places that may stay
    fresh and of tensors that may find no place; `classes` the class names of the model's tasks, by which a head of a
    source of ours is known to be the same task's. A model on torch's meta device is judged only.

    Raises WeightsError with a line for each thing that does not fit.
    """
    if tubelet not in TUBELETS:
        raise ValueError(f"tubelet {tubelet!r}: known are {', '.join(TUBELETS)}")
    _agree(model, source, place)
    return _Fitting(model, source, tubelet, tuple(allow), classes or {}).report(place)


def _agree(model: PolyViT, source: Source, place: str) -> None:
    """Sizes without which no tensor would fit, or all would and compute something else."""
    a = model.architecture
    pairs = {
        "width": (source.width, a.width),
        "mlp_width": (source.mlp_width, a.mlp_width),
        "heads": (source.heads, a.heads),
    }
    differ = [f"{key} {theirs}, not {ours}" for key, (theirs, ours) in pairs.items() if theirs not in (None, ours)]
    if differ:
        raise WeightsError(f"{place}: its transformer is another than the recipe's model: it has {'; '.join(differ)}")


class _Fitting:
    """One source being fitted to one model."""

    def __init__(
        self,
        model: PolyViT,
        source: Source,
        tubelet: str,
        allow: tuple[str, ...],
        classes: Mapping[str, Sequence[str]],
    ) -> None:
        self.model, self.source, self.tubelet, self.allow, self.classes = model, source, tubelet, allow, classes
        self.weights: dict[str, Tensor] = {}
        self.entries: dict[str, list[Entry]] = {kind: [] for kind in KINDS}
        self.used: set[str] = set()
        self.refused: dict[str, str] = {}  # our name for a tensor of the source -> the place that it does not fit
        self.faults: list[str] = []
        self.donors = {self.donor(modality) for modality in model.architecture.modalities}

    def report(self, place: str) -> Report:
        for name, wanted in self.model.state_dict().items():
            self.fill(name, wanted.shape)
        self.look_at_the_rest()
        if self.faults:
            lines = self.faults[:MOST_FAULTS]
            if len(self.faults) > MOST_FAULTS:
                lines.append(f"and {len(self.faults) - MOST_FAULTS} more, the last: {self.faults[-1]}")
            if self.source.depth != (depth := self.model.architecture.depth):
                lines.append(f"it has {self.source.depth} layers, the recipe's model {depth}")
            lines.append("what may stay fresh, or find no place, is named in model.init_allow, e.g. ['encoder.11.*']")
            raise WeightsError("\n".join(f"{place}: {line}" for line in lines))
        if not any(parameter.is_meta for parameter in self.model.parameters()):
            self.model.load_state_dict(self.weights, strict=False)
        entries = {kind: tuple(of_kind) for kind, of_kind in self.entries.items()}
        a = self.model.architecture
        about = {"kind": self.source.kind, "norm_eps": a.norm_eps, "gelu": a.gelu, "remarks": self.source.remarks}
        return Report(place=place, **about, **entries)

    # --- a place of the model ---

    def fill(self, place: str, wanted: torch.Size) -> None:
        part, first, *_ = place.split(".")
        if part == "heads":
            self.fill_head(place, first)
        elif part == "tokenizers":
            donor = self.donor(first)
            inner = place.split(".", 2)[2]
            if inner.startswith("adaptors."):
                _, layer, rest = inner.split(".", 2)
                self.put(place, wanted, self.layer(int(layer), donor, rest))
            elif inner == "embedding.weight":
                self.fill_kernel(place, wanted, f"tokenizers.{donor}.embedding.weight")
            elif inner == "positions":
                self.fill_positions(place, wanted, donor, self.model.architecture.modalities[first].grid)
            else:
                self.put(place, wanted, f"tokenizers.{donor}.{inner}")
        elif part == "encoder":
            layer = int(first) + self.model.architecture.adaptor_layers
            only = next(iter(self.donors)) if len(self.donors) == 1 else None  # of two stacks none could be chosen
            self.put(place, wanted, self.layer(layer, only, place.split(".", 2)[2]))
        else:
            self.put(place, wanted, place)

    def donor(self, modality: str) -> str:
        """The modality of the source whose tokenizer and adaptors it takes."""
        return next(name for name in DONORS[modality] if name in self.source.grids)

    def layer(self, layer: int, modality: str | None, rest: str) -> str:
        """The source's name for a weight of the layer that an input of that modality passes as its `layer`-th."""
        private = self.source.adaptor_layers
        if layer >= private:
            return f"encoder.{layer - private}.{rest}"
        return f"tokenizers.{modality}.adaptors.{layer}.{rest}"

    def put(
        self,
        place: str,
        wanted: torch.Size,
        name: str,
        tensor: Tensor | None = None,
        kind: str = "copied",
        note: str = "",
    ) -> None:
        """Take the source's tensor of that name (or what was made of it) if it has the shape wanted."""
        tensor = self.source.tensors.get(name) if tensor is None else tensor
        if tensor is None:
            self.nothing_for(place, "the source has nothing for it")
            return
        names = self.source.origin[name]
        why = None
        if tensor.shape != wanted:
            why = f"{' + '.join(names)} has the shape {list(tensor.shape)}, {list(wanted)} would fit"
        elif not tensor.is_floating_point():
            why = f"{' + '.join(names)} is {tensor.dtype}: quantised weights are not read"
        if why:
            self.refused[name] = place
            self.nothing_for(place, why)
            return
        self.used.add(name)
        if done := self.source.notes.get(name):
            kind, note = ("resized" if kind == "copied" else kind), "; ".join(filter(None, [done, note]))
        self.weights[place] = tensor.to(torch.float32)
        self.entries[kind].append(Entry(place, names, note))

    def nothing_for(self, place: str, why: str) -> None:
        if allowed(place, self.allow):
            self.entries["fresh"].append(Entry(place, note=f"allowed: {why}"))
        else:
            self.faults.append(f"{place} gets nothing: {why}")

    # --- heads ---

    def fill_head(self, place: str, task: str) -> None:
        """A head of a source of ours goes to the task of the same name and classes; all others are fresh."""
        tensor = self.source.tensors.get(place)
        if tensor is None:
            self.entries["fresh"].append(Entry(place, note="a new task's head"))
            return
        theirs, ours = self.source.classes.get(task), tuple(self.classes.get(task, ()))
        if theirs == ours:
            self.put(place, tensor.shape, place)
            return
        self.entries["fresh"].append(Entry(place, note="a head whose task has other classes in the source"))

    # --- tokenizers ---

    def fill_kernel(self, place: str, wanted: torch.Size, name: str) -> None:
        """Patch kernels [d, 3, *patch]: 2D to 3D by `tubelet`, 3D to 2D by the sum over frames (facts: a still clip's
        response is then the picture's)."""
        kernel = self.source.tensors.get(name)
        if kernel is None or kernel.shape == wanted or kernel.shape[-2:] != wanted[-2:]:
            self.put(place, wanted, name)
            return
        notes = []
        if kernel.dim() == 5:
            notes.append(f"summed over {kernel.shape[2]} frames")
            kernel = kernel.sum(2)
        if len(wanted) == 4:
            self.put(place, wanted, name, kernel, "resized", *notes)
            return
        frames = wanted[2]
        if self.tubelet == "random":
            self.refused[name] = place
            self.entries["fresh"].append(Entry(place, note="model.init_tubelet: random"))
            return
        if self.tubelet == "central":
            made = torch.zeros_like(kernel).unsqueeze(2).repeat(1, 1, frames, 1, 1)
            made[:, :, frames // 2] = kernel
            notes.append(f"frame {frames // 2} of 0 to {frames - 1}, the others zero")
        else:
            made = kernel.unsqueeze(2).expand(-1, -1, frames, -1, -1)
            made = made / frames if self.tubelet == "inflate" else made
            notes.append(f"in each of {frames} frames{', divided by their number' * (self.tubelet == 'inflate')}")
        self.put(place, wanted, name, made, "inflated", "; ".join(notes))

    def fill_positions(self, place: str, wanted: torch.Size, donor: str, grid: tuple[int, ...]) -> None:
        name = f"tokenizers.{donor}.positions"
        positions = self.source.tensors.get(name)
        if positions is None:
            self.put(place, wanted, name)
            return
        theirs = self.source.grids[donor]
        if theirs is None and len(self.source.tensors[f"tokenizers.{donor}.embedding.weight"].shape) == len(grid) + 2:
            theirs = grid  # as many as here, then: any other number is refused below
        if theirs is None or math.prod(theirs) != positions.shape[1] - 1:
            self.refused[name] = place
            count = positions.shape[1] - 1
            why = f"the source has {count} positions, and nothing says on which grid; a config.json beside it would"
            self.nothing_for(place, why)
            return
        if theirs == grid:
            self.put(place, wanted, name)
            return
        shown = " -> ".join("x".join(map(str, g)) for g in (theirs, grid))
        self.put(place, wanted, name, resized(positions, theirs, grid), "resized", shown)

    # --- what is left of the source ---

    def look_at_the_rest(self) -> None:
        skipped = self.entries["skipped"]
        skipped += [Entry("", (name,), why) for name, why in self.source.skipped.items()]
        lost = list(self.source.strangers)
        for ours, names in self.source.origin.items():
            if ours in self.used:
                continue
            part, first, *_ = ours.split(".")
            if ours in self.refused:
                skipped += [Entry("", (name,), f"{self.refused[ours]} stays fresh") for name in names]
            elif part == "heads":
                gone = first not in self.model.architecture.tasks
                why = "the head of a task that the recipe has not" if gone else "the head of other classes"
                skipped += [Entry("", (name,), why) for name in names]
            elif part == "tokenizers" and first not in self.donors:
                why = f"the source's {first} tokenizer, which nothing here takes"
                skipped += [Entry("", (name,), why) for name in names]
            else:
                lost += names
        for name in lost:
            if allowed(name, self.allow):
                skipped.append(Entry("", (name,), "allowed: it fits nowhere"))
            else:
                self.faults.append(f"{name} fits nowhere")


def resized(positions: Tensor, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
    """Positions [1, 1 + prod(before), d] on another grid, the class slot kept: interpolated linearly along each axis,
    corners on corners. A grid that gains time is tiled over it, one that loses it averaged."""
    first, patches = positions[:, :1].float(), positions[:, 1:].float()
    field = patches.unflatten(1, before).movedim(-1, 1)  # [1, d, *before]
    if len(before) == 3 and len(after) == 2:
        field = field.mean(2)
    space = after[-2:] if len(before) == 2 or len(after) == 2 else after
    if tuple(field.shape[2:]) != tuple(space):
        mode = {2: "bilinear", 3: "trilinear"}[len(space)]
        field = F.interpolate(field, size=space, mode=mode, align_corners=True)
    if len(before) == 2 and len(after) == 3:
        field = field.unsqueeze(2).expand(-1, -1, after[0], -1, -1)
    return torch.cat([first, field.flatten(2).transpose(1, 2)], dim=1)
