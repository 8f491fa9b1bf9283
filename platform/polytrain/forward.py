"""A trained model on a device: decoded media in, features or logits out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from polytrain.data.device import DeviceInputs
from polytrain.model.architecture import Architecture
from polytrain.model.polyvit import PolyViT, on_meta
from polytrain.training.checkpoint import CheckpointError
from polytrain.training.precision import wants_bf16

TOKENS_CPU, TOKENS_GPU = 8_192, 131_072
"""What goes through the model at once: activations stay small, also for twelve views of large clips."""


class Forward:
    """A model in evaluation mode with the preprocessing of each modality, on a device.

    Media are what decoders give: [b, *geometry.decoded_shape], uint8 frames or float32 waveforms.
    """

    def __init__(
        self, architecture: Architecture, weights: dict[str, Tensor], device: str = "auto", *, precision: str = "fp32"
    ) -> None:
        self.architecture = architecture
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.bf16 = wants_bf16(precision, self.device)
        model = on_meta(architecture)
        _check_fit(model, weights)
        model.load_state_dict(weights, assign=True)
        self.model = model.requires_grad_(False).eval().to(self.device)
        self.inputs = DeviceInputs(architecture.modalities).to(self.device)

    @classmethod
    def of_file(
        cls, architecture: Architecture, file: Path, device: str = "auto", *, precision: str = "fp32"
    ) -> Forward:
        """From a checkpoint's model.safetensors. Raises CheckpointError."""
        try:
            weights = safetensors.torch.load_file(file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is truncated or damaged, or no safetensors file: {error}") from None
        try:
            return cls(architecture, weights, device, precision=precision)
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from None

    def features(self, modality: str, media: np.ndarray) -> Tensor:
        """The class token after the final LayerNorm, [b, d] float32 on the CPU."""
        return self.outputs(modality, media)["features"]

    def logits(self, task: str, media: np.ndarray) -> Tensor:
        """[b, classes] float32 on the CPU."""
        return self.outputs(self.architecture.tasks[task].modality, media, (task,))[task]

    def outputs(self, modality: str, media: np.ndarray, tasks: Sequence[str] = ()) -> dict[str, Tensor]:
        """Logits of several tasks of a modality from one pass, or without any the "features"; on the CPU."""
        geometry = self.architecture.modalities[modality]
        most = max(1, (TOKENS_GPU if self.device.type == "cuda" else TOKENS_CPU) // geometry.positions)
        passes = [self._pass(modality, media[first : first + most], tasks) for first in range(0, len(media), most)]
        if not passes:
            passes = [{name: torch.empty(0, self._width(name)) for name in tasks or ("features",)}]
        return {name: torch.cat([one[name] for one in passes]) for name in passes[0]}

    def _pass(self, modality: str, media: np.ndarray, tasks: Sequence[str]) -> dict[str, Tensor]:
        # Ray's arrays are read-only views of shared memory, which torch would warn of.
        tensor = torch.from_numpy(media if media.flags.writeable else media.copy()).to(self.device)
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.model.features(modality, self.inputs[modality](tensor))
            found = {task: self.model.heads[task](features) for task in tasks} or {"features": features}
        return {name: value.float().cpu() for name, value in found.items()}

    def _width(self, name: str) -> int:
        return self.architecture.tasks[name].classes if name in self.architecture.tasks else self.architecture.width


@dataclass(frozen=True)
class Portable:
    """A model as it travels: called, it is a `Forward` on the machine it has come to."""

    architecture: Architecture
    weights: np.ndarray  # [bytes] uint8: a safetensors file, which Ray shares between a machine's processes
    precision: str

    @classmethod
    def of_file(cls, architecture: Architecture, file: Path, *, precision: str = "fp32") -> Portable:
        """From a checkpoint's model.safetensors. Raises CheckpointError where that does not fit the architecture."""
        try:
            with safetensors.safe_open(file, "pt") as opened:
                names = opened.keys()
                shapes = {name: torch.empty(opened.get_slice(name).get_shape(), device="meta") for name in names}
            _check_fit(on_meta(architecture), shapes)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is truncated or damaged, or no safetensors file: {error}") from None
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from None
        return cls(architecture, np.fromfile(file, np.uint8), precision)

    def __call__(self, device: str = "auto") -> Forward:
        return Forward(
            self.architecture, safetensors.torch.load(self.weights.tobytes()), device, precision=self.precision
        )


def _check_fit(model: PolyViT, weights: dict[str, Tensor]) -> None:
    """Raises CheckpointError that names the first weight that is missing, too many, or of another shape."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in weights:
            raise CheckpointError(f"has no {name}, which the architecture in state.json asks for: of another model?")
        if tuple(weights[name].shape) != shape:
            raise CheckpointError(
                f"{name} is {list(weights[name].shape)}, the architecture in state.json says {list(shape)}: of another "
                "model?"
            )
    if more := sorted(set(weights) - set(expected)):
        raise CheckpointError(f"holds {more[0]}, which the architecture in state.json does not know: of another model?")
