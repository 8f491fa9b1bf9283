"""Our own checkpoints as a source: their names need no translation."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from polytrain.modalities import MODALITIES
from polytrain.model.architecture import Architecture, Head
from polytrain.model.pretrained.files import WeightsError, read
from polytrain.model.pretrained.source import Source


def read_checkpoint(folder: Path, *, shapes_only: bool = False) -> Source:
    """A checkpoint folder (`state.json` beside `model.safetensors`). Raises WeightsError where it is damaged."""
    architecture, classes = describe(folder)
    tensors = read(folder / "model.safetensors", shapes_only=shapes_only)
    return Source(
        kind="a checkpoint of polytrain",
        tensors=tensors,
        origin={name: (name,) for name in tensors},
        grids={name: geometry.grid for name, geometry in architecture.modalities.items()},
        norm_eps=architecture.norm_eps,
        gelu=architecture.gelu,
        heads=architecture.heads,
        adaptor_layers=architecture.adaptor_layers,
        classes=classes,
    )


def describe(folder: Path) -> tuple[Architecture, dict[str, tuple[str, ...]]]:
    """The architecture of a checkpoint and its tasks' class names. Raises WeightsError where it is damaged."""
    file = folder / "state.json"
    try:
        state = json.loads(file.read_text())
        classes = {task: tuple(names) for task, names in state["classes"].items()}
        expected = state["sha256"]["model.safetensors"]
        architecture = (
            Architecture.from_plain(state["architecture"])
            if "architecture" in state
            else _from_recipe(folder / "recipe.yaml", classes)
        )
    except FileNotFoundError as error:
        raise WeightsError(f"{folder}: {Path(error.filename).name} is missing from the checkpoint") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{file} is damaged, or of another version: {error}") from None
    weights = folder / "model.safetensors"
    if not weights.exists():
        raise WeightsError(f"{weights} is missing")
    with weights.open("rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != expected:
            raise WeightsError(f"{weights} is truncated or damaged: its content is not what was written")
    return architecture, classes


def _from_recipe(file: Path, classes: dict[str, tuple[str, ...]]) -> Architecture:
    """For checkpoints of before `state.json` held the architecture; they were all made with the defaults."""
    import yaml

    recipe: dict[str, Any] = yaml.safe_load(file.read_text())
    model, tasks = recipe["model"], recipe["tasks"]
    used = {task["modality"] for task in tasks.values()}
    return Architecture(
        **{key: model[key] for key in ("depth", "width", "heads", "mlp_width", "adaptor_layers")},
        modalities={
            name: kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in recipe["modalities"][name].items()})
            for name, kind in MODALITIES.items()
            if name in used
        },
        tasks={name: Head(tasks[name]["modality"], len(names)) for name, names in classes.items()},
    )
