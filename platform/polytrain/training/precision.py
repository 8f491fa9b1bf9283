"""The precision that a model computes in."""

from __future__ import annotations

import warnings

import torch


def wants_bf16(precision: str, device: torch.device) -> bool:
    """bf16 where asked for, and by itself on GPUs that have it and on CPUs with instructions for it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return any(getattr(torch.cpu, name, bool)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
