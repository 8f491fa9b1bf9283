"""From another's names and layouts to a `Source`: rules of its dialect, then what a config.json adds.

A source has one modality: a kernel of three axes is a video's, one of a single channel a spectrogram's (AST), any
other an image's.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from polytrain.modalities import CHANNELS
from polytrain.model.pretrained.dialects import HUGGING_FACE, TIMM, TOKEN, Dialect, recognise
from polytrain.model.pretrained.files import WeightsError
from polytrain.model.pretrained.source import Source

GELUS = {
    "gelu": "none",
    "gelu_python": "none",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_accurate": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_tanh": "tanh",
}
"""Other people's names of the activation -> what F.gelu calls the approximation."""

SPECTROGRAM_GRIDS = {
    frequency * time: (frequency, time)
    for stride in (10, 12, 14, 16)
    for frames in (128, 512, 1024)
    for frequency, time in [((128 - 16) // stride + 1, (frames - 16) // stride + 1)]
}
"""Patches -> (frequency, time) of the spectrogram transformers that AST's authors published: 128 mel bins, patches of
16 every 10 to 16, of 128, 512 or 1,024 frames. No two have the same number."""

VIDEO_GRID = (14, 14)
"""Rows and columns of a video source that does not say: every published ViViT has 224 x 224 pixels in patches of 16."""


def translate(tensors: dict[str, Tensor], config: dict[str, Any], where: str) -> Source:
    """A Source from a file's tensors and the config.json beside it ({} for none). Raises WeightsError."""
    dialect, prefix = _dialect(list(tensors), where)
    kernel = tensors[prefix + dialect.kernel]
    if kernel.dim() not in (4, 5):
        raise WeightsError(f"{where}: {prefix + dialect.kernel} is no patch kernel, its shape is {list(kernel.shape)}")
    tensors = dialect.unstacked(tensors)
    rules = [(re.compile(pattern), ours) for pattern, ours in dialect.rules.items()]
    skips = [(re.compile(pattern), why) for pattern, why in dialect.skipped.items()]
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[str, tuple[str, Tensor]]] = defaultdict(dict)
    origin: dict[str, tuple[str, ...]] = {}
    skipped: dict[str, str] = {}
    strangers: list[str] = []
    heads = None
    for name, tensor in tensors.items():
        ours = _our_name(name, prefix, rules)
        if ours is None:
            reason = next((why for pattern, why in skips if pattern.search(name)), None)
            if reason is None:
                strangers.append(name)
            else:
                skipped[name] = reason
            continue
        ours, _, part = ours.partition("#")
        if part and dialect.kernel == "embedding/kernel" and tensor.dim() == 3:
            heads = tensor.shape[1]
        try:
            laid_out = dialect.to_torch(ours, tensor)
        except (RuntimeError, IndexError):
            raise WeightsError(f"{where}: {name} has the shape {list(tensor.shape)}, which it never has") from None
        taken = parts[ours].get(part, (None,))[0] if part else origin.get(ours, (None,))[0]
        if taken:
            raise WeightsError(f"{where}: {taken} and {name} are the same weight's names; one of them would be right")
        if part:
            parts[ours][part] = (name, laid_out)
        else:
            found[ours], origin[ours] = laid_out, (name,)
    for ours, of_name in parts.items():
        if missing := [part for part in "qkv" if part not in of_name]:
            raise WeightsError(
                f"{where}: {', '.join(name for name, _ in of_name.values())} is there without its part {missing[0]}"
            )
        try:
            found[ours] = torch.cat([of_name[part][1] for part in "qkv"])
        except RuntimeError:
            shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in of_name.values())
            raise WeightsError(f"{where}: the shapes do not go together: {shapes}") from None
        origin[ours] = tuple(of_name[part][0] for part in "qkv")
    config = config if _belongs(config, found) else {}
    return _with_tokenizer(dialect, found, origin, skipped, strangers, heads, config, where)


def _dialect(names: list[str], where: str) -> tuple[Dialect, str]:
    found = recognise(names)
    if len(found) == 1:
        return found[0]
    if found:
        kernels = ", ".join(prefix + dialect.kernel for dialect, prefix in found)
        raise WeightsError(f"{where}: holds {len(found)} models ({kernels}); a file with one of them would be right")
    if any(name.startswith("tokenizers.") for name in names):
        raise WeightsError(f"{where}: is of a checkpoint of polytrain; give its folder, whose state.json says the rest")
    raise WeightsError(
        f"{where}: no vision transformer that is known by its names (the original ViT's, timm's, Hugging Face's); it "
        f"begins {', '.join(names[:4])}"
    )


def _our_name(name: str, prefix: str, rules: list[tuple[re.Pattern[str], str]]) -> str | None:
    if name.startswith(prefix):
        inner = name[len(prefix) :]
        for pattern, ours in rules:
            if match := pattern.fullmatch(inner):
                return match.expand(ours)
    return None


def _belongs(config: dict[str, Any], found: dict[str, Tensor]) -> bool:
    """Whether a config.json that lies beside a file speaks of this model."""
    return config.get("hidden_size", config.get("num_features")) == len(found["embedding.weight"])


def _with_tokenizer(
    dialect: Dialect,
    found: dict[str, Tensor],
    origin: dict[str, tuple[str, ...]],
    skipped: dict[str, str],
    strangers: list[str],
    heads: int | None,
    config: dict[str, Any],
    where: str,
) -> Source:
    kernel = found["embedding.weight"]
    spectrogram = kernel.dim() == 4 and kernel.shape[1] == 1
    modality = "video" if kernel.dim() == 5 else "audio" if spectrogram else "image"
    notes = {}
    special = ("class_token" in found) + (TOKEN in skipped.values())
    grid = _grid_of_config(config, modality, tuple(kernel.shape[2:]))
    if "positions" in found:
        found["positions"], grid = _positions(found["positions"], special, grid, modality, where)
    if spectrogram:
        # AST's spectrograms are frequency x time with one channel; ours time x frequency, repeated to three.
        found["embedding.weight"] = (kernel.transpose(2, 3) / CHANNELS).expand(-1, CHANNELS, -1, -1)
        notes["embedding.weight"] = f"time before frequency, 1 channel spread over {CHANNELS}"
        if grid and "positions" in found:
            first, patches = found["positions"].split([1, math.prod(grid)], dim=1)
            patches = patches.unflatten(1, grid).transpose(1, 2).flatten(1, 2)
            found["positions"], grid = torch.cat([first, patches], dim=1), grid[::-1]

    def named(ours: str) -> str:
        shared = ours.startswith(("encoder.", "norm."))
        return ours if shared else f"tokenizers.{modality}.{ours}"

    eps, gelu = _traits(dialect, modality, config, where)
    return Source(
        kind=dialect.kind,
        tensors={named(ours): tensor for ours, tensor in found.items()},
        origin={named(ours): names for ours, names in origin.items()},
        grids={modality: grid},
        norm_eps=eps,
        gelu=gelu,
        heads=config.get("num_attention_heads", heads),
        notes={named(ours): note for ours, note in notes.items()},
        skipped=skipped,
        remarks=_remarks(config),
        strangers=strangers,
    )


def _remarks(config: dict[str, Any]) -> tuple[str, ...]:
    """Pictures reach this model in [-1, 1], as the original ViT had them; some sources have seen others."""
    given = config.get("pretrained_cfg") if isinstance(config.get("pretrained_cfg"), dict) else config
    mean, std = given.get("mean", config.get("image_mean")), given.get("std", config.get("image_std"))
    if not isinstance(mean, list) or not isinstance(std, list) or {*mean, *std} == {0.5}:
        return ()
    return (f"note: trained on pictures normalised by mean {mean} and deviation {std}; here they are in [-1, 1]",)


def _traits(dialect: Dialect, modality: str, config: dict[str, Any], where: str) -> tuple[float, str]:
    """LayerNorm's epsilon and GELU's variant, from the config or as the dialect has it."""
    eps, gelu = dialect.norm_eps, dialect.gelu
    if dialect is HUGGING_FACE and modality == "video":
        eps, gelu = 1e-6, "tanh"  # ViViT's own defaults, there as well
    activation = config.get("hidden_act")
    if dialect is TIMM and isinstance(config.get("model_args"), dict):
        activation = config["model_args"].get("act_layer")
    if activation is not None:
        if activation not in GELUS:
            raise WeightsError(
                f"{where}: its activation is {activation!r}, which this model has not; known are {', '.join(GELUS)}"
            )
        gelu = GELUS[activation]
    return float(config.get("layer_norm_eps", eps)), gelu


def _grid_of_config(config: dict[str, Any], modality: str, patch: tuple[int, ...]) -> tuple[int, ...] | None:
    """Tokens along each axis: (height, width), (time, height, width), or AST's (frequency, time)."""

    def pair(value: Any) -> tuple[int, int]:
        return tuple(value) if isinstance(value, list) else (value, value)

    try:
        if modality == "audio" and "max_length" in config:
            sizes = (config["num_mel_bins"], config["max_length"])
            strides = (config["frequency_stride"], config["time_stride"])
            return tuple((size - p) // s + 1 for size, p, s in zip(sizes, patch, strides, strict=True))
        if "image_size" in config:
            size = pair(config["image_size"])
        elif isinstance(config.get("pretrained_cfg"), dict) and modality == "image":
            size = tuple(config["pretrained_cfg"]["input_size"][1:])
        else:
            return None
        size = (config["num_frames"], *size) if modality == "video" else size
        return tuple(whole // part for whole, part in zip(size, patch, strict=True))
    except (KeyError, TypeError, ValueError):
        return None


def _positions(
    positions: Tensor, special: int, grid: tuple[int, ...] | None, modality: str, where: str
) -> tuple[Tensor, tuple[int, ...] | None]:
    """Positions [1, 1 + N, d], class slot first, and their grid; `special` tokens have slots, or none of them has.

    big_vision and some of timm's models add positions before the class token: it then has none, which is one of zeros.
    """
    if positions.dim() == 4:  # [1, height, width, d]
        grid = tuple(positions.shape[1:3])
    positions = positions.reshape(1, -1, positions.shape[-1])
    count = positions.shape[1]
    if grid is None or count not in (math.prod(grid), math.prod(grid) + special):
        grid = next((g for slots in (special, 0) if (g := _guessed_grid(count - slots, modality))), None)
    if grid is None and modality == "audio":
        raise WeightsError(
            f"{where}: {count - special} positions of a spectrogram, and nothing says how many of them lie along time; "
            f"the config.json of Hugging Face beside it would"
        )
    slots = count - math.prod(grid) if grid else special
    patches = positions[:, slots:]
    first = positions[:, :1] if slots else torch.zeros_like(positions[:, :1])
    return torch.cat([first, patches], dim=1), grid


def _guessed_grid(patches: int, modality: str) -> tuple[int, ...] | None:
    if modality == "audio":
        return SPECTROGRAM_GRIDS.get(patches)
    if modality == "video":
        frames, rest = divmod(patches, math.prod(VIDEO_GRID))
        return (frames, *VIDEO_GRID) if frames and not rest else None
    side = math.isqrt(max(patches, 0))
    return (side, side) if side and side * side == patches else None
