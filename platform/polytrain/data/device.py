"""From decoded media to what a tokenizer takes: on the device, batched.

Streams carry bytes (frames) and waveforms because those are small; pixels become numbers and sound becomes a
log-mel spectrogram where the arithmetic is cheap.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from polytrain.data.spectrogram import LogMel
from polytrain.modalities import Audio, Geometry, Image, Video


class Pixels(nn.Module):
    """uint8 frames [B, (T,) H, W, 3] -> float32 [B, 3, (T,) H, W] in [-1, 1]."""

    def forward(self, frames: Tensor) -> Tensor:
        return frames.movedim(-1, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1.0)


INPUTS = {Image: lambda _: Pixels(), Video: lambda _: Pixels(), Audio: LogMel}


class DeviceInputs(nn.ModuleDict):
    """The preprocessing of each modality, by name."""

    def __init__(self, geometries: Mapping[str, Geometry]) -> None:
        super().__init__({name: INPUTS[type(geometry)](geometry) for name, geometry in geometries.items()})
