"""Other people's weights, and our own of another run, as a start: read, translated, fitted, and told.

    source = open_source(path)                      # what is there, by our names, with its eps and GELU
    report = fit(model, source, place=str(path))    # into a model (on the meta device: judged only)

`open_source` takes the original ViT's .npz (with the names of Linen and big_vision, and behind any prefix), state dicts
of timm's and Hugging Face's ViT and DeiT, AST and ViViT (safetensors, or torch's files of tensors alone), and the
checkpoints of polytrain. Nothing is unpickled.
"""

from __future__ import annotations

from pathlib import Path

from polytrain.model.pretrained.files import WeightsError, config_beside, read
from polytrain.model.pretrained.fitting import TUBELETS, fit, resized
from polytrain.model.pretrained.own import read_checkpoint
from polytrain.model.pretrained.report import Entry, Report
from polytrain.model.pretrained.source import Source
from polytrain.model.pretrained.translation import translate

__all__ = ["TUBELETS", "Entry", "Report", "Source", "WeightsError", "fit", "open_source", "resized"]


def open_source(path: Path, *, shapes_only: bool = False) -> Source:
    """The weights in a file or folder. With `shapes_only` its tensors take no memory. Raises WeightsError."""
    folder = path.parent if path.name == "model.safetensors" else path
    if (folder / "state.json").exists():
        return read_checkpoint(folder, shapes_only=shapes_only)
    return translate(read(path, shapes_only=shapes_only), config_beside(path), str(path))
