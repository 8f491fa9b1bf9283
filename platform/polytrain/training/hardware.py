"""What a worker computes on."""

from __future__ import annotations

import ray
import ray.train.torch
import torch

from polytrain.training.start import Place


def device_at(place: Place) -> torch.device:
    """The device that Ray gave this worker; workers of a group on one node see each other's GPUs too."""
    if place.in_group:
        return ray.train.torch.get_device()
    return torch.device("cuda" if ray.get_gpu_ids() else "cpu")
