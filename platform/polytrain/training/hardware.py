"""What a worker computes on, and in which precision."""

from __future__ import annotations

import warnings

import ray
import ray.train.torch
import torch

from polytrain.training.start import Place


def device_at(place: Place) -> torch.device:
    """The device that Ray gave this worker; workers of a group on one node see each other's GPUs too."""
    if place.in_group:
        return ray.train.torch.get_device()
    return torch.device("cuda" if ray.get_gpu_ids() else "cpu")


def wants_bf16(precision: str, device: torch.device) -> bool:
    """bf16 where asked for, and by itself on GPUs that have it and on CPUs with instructions for it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return any(getattr(torch.cpu, name, bool)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
