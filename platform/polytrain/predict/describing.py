"""What a stranger should know of a checkpoint, as text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from polytrain.model.architecture import Architecture
from polytrain.text_table import table
from polytrain.trained import Trained
from polytrain.training.description import preprocessing

WIDTH = 110


def text(trained: Trained) -> str:
    """All of it, as text for a terminal."""
    sections = [
        _head(trained),
        _tasks(trained),
        "classes\n" + "\n".join(_wrapped(task.name, ", ".join(task.classes)) for task in trained.tasks.values()),
        "inputs\n" + "\n".join(_inputs(trained, name) for name in trained.architecture.modalities),
        "origin\n" + "\n".join(_wrapped(name, value) for name, value in _origin(trained).items()),
    ]
    return "\n\n".join(sections)


def _head(trained: Trained) -> str:
    a = trained.architecture
    private = f", {a.adaptor_layers} of them private to each modality" if a.adaptor_layers else ""
    return (
        f"{trained.place}\n"
        f"{_parameters(a):,} parameters: {a.depth} layers{private}, width {a.width}, {a.heads} heads, MLP "
        f"{a.mlp_width}, LayerNorm epsilon {a.norm_eps:g}, GELU {'by tanh' if a.gelu == 'tanh' else 'exact'}\n"
        f"licence: {trained.state.get('license') or 'none given (key license of its recipe)'}"
    )


def _parameters(a: Architecture) -> int:
    """Of the whole model; counted here, for torch takes seconds to import."""
    layer = 4 * a.width * (a.width + 1) + (a.mlp_width + 1) * a.width + (a.width + 1) * a.mlp_width + 4 * a.width
    tokenizers = sum((g.patch_inputs + 1 + 1 + g.positions) * a.width for g in a.modalities.values())
    heads = sum((a.width + 1) * head.classes for head in a.tasks.values())
    layers = a.depth - a.adaptor_layers + a.adaptor_layers * len(a.modalities)
    return layers * layer + tokenizers + heads + 2 * a.width


def _tasks(trained: Trained) -> str:
    """A line a task, with what it reached where the checkpoint knows."""
    reached = {
        "val": trained.state.get("progress", {}).get("validation", {}),
        "test": trained.state.get("results", {}).get("test", {}),
    }
    rows = []
    for task in trained.tasks.values():
        values = [of_split.get(task.name, {}).get(task.metric) for of_split in reached.values()]
        shown = ["-" if value is None else f"{value:.1f}" for value in values]
        rows.append([task.name, task.modality, len(task.classes), task.loss, task.metric, *shown])
    return table(["task", "modality", "classes", "loss", "metric", *reached], rows)


def _inputs(trained: Trained, modality: str) -> str:
    geometry = trained.architecture.modalities[modality]
    shapes = f"input {_by(geometry.input_shape)}, patches of {_by(geometry.patch_shape)}, {geometry.positions} tokens"
    lines = [f"  {modality}: {shapes}"]
    # Checkpoints of before did not say; the geometry decides it all.
    said = trained.state.get("preprocessing", {}).get(modality) or preprocessing(geometry)
    for key, value in said.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {_plain(one)}" for name, one in value.items())
        lines.append(_wrapped(key, _plain(value), "    "))
    clips, crops = trained.recipe.eval.views_of(modality)
    if clips * crops > 1:
        lines.append(f"    views: {clips} clips x {crops} crops in the final test, logits averaged")
    return "\n".join(lines)


def _origin(trained: Trained) -> dict[str, str]:
    state, recipe = trained.state, trained.recipe
    said = {
        "recipe": f"{recipe.run_name} (recipe.yaml beside the weights; --recipe prints it)",
        "steps": f"{state['step']:,}, schedule {recipe.schedule}",
        "initial weights": recipe.model.init or "fresh",
        "manifests": ", ".join(f"{name} {digest[:12]}" for name, digest in state.get("manifests", {}).items()),
        "plan": state.get("plan_digest", "")[:12],
        "weights": f"sha256 {state['sha256']['model.safetensors']}",
        "versions": ", ".join(f"{name} {version}" for name, version in state.get("versions", {}).items()),
    }
    return {name: value for name, value in said.items() if value}


def _wrapped(name: str, value: str, indent: str = "  ") -> str:
    return textwrap.fill(f"{name}: {value}", WIDTH, initial_indent=indent, subsequent_indent=indent + "  ",
                         break_long_words=False, break_on_hyphens=False)  # fmt: skip


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
