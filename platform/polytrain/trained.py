"""A checkpoint opened for use: what it can do, what it was made from, and its model on a device.

A checkpoint is data: weights are read as safetensors, the rest as JSON and YAML, and nothing in it is ever unpickled.
Opening takes no torch; `Trained.forward` does.
"""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import yaml

from polytrain.data import storage
from polytrain.data.views import View, views_at_test
from polytrain.modalities import MODALITIES
from polytrain.model.architecture import Architecture
from polytrain.recipe import Recipe, RecipeError
from polytrain.training import checkpoint
from polytrain.training.checkpoint import CheckpointError

if TYPE_CHECKING:
    from polytrain.forward import Forward, Portable

FORMAT = 1
"""Of `state.json`; what this polytrain reads."""

USED = ("model.safetensors", "recipe.yaml")
"""Files of a checkpoint that its use needs; the optimizer's state is for going on with training."""


@dataclass(frozen=True)
class TrainedTask:
    """What a model can say about a file."""

    name: str
    modality: str
    classes: tuple[str, ...]
    multi_label: bool
    loss: str
    """softmax or sigmoid: how logits become probabilities."""

    @property
    def metric(self) -> str:
        """The metric that it is judged by: mAP where examples carry several labels, else top1."""
        return "mAP" if self.multi_label else "top1"

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """[b, classes] float32: summing to one over the classes (softmax), or of each class by itself (sigmoid)."""
        logits = logits.astype(np.float64)
        if self.loss == "sigmoid":
            return (0.5 * (1 + np.tanh(logits / 2))).astype(np.float32)
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)


class Trained:
    """A checkpoint: `Trained.open(PLACE)`."""

    def __init__(
        self, place: str, path: Path, state: dict[str, Any], architecture: Architecture, tasks: dict[str, TrainedTask]
    ) -> None:
        self.place, self.path, self.state = place, path, state
        self.architecture, self.tasks = architecture, tasks

    @classmethod
    def open(cls, place: str | os.PathLike) -> Trained:
        """A checkpoint folder, a file in it, or a run's folder (its final, else its best, else its newest checkpoint):
        a path, or a URI of any store that `data.storage` knows; `place` then is what was opened.

        Raises CheckpointError: nothing there, no checkpoint, of another version, truncated or damaged.
        """
        try:
            place = _checkpoint_at(os.fspath(place))
            path = _local(place)
        except storage.StorageError as error:
            raise CheckpointError(str(error)) from None
        state = checkpoint.verify(path, USED)
        if state.get("format", FORMAT) != FORMAT:
            raise CheckpointError(
                f"{place} is of format {state['format']!r}; this polytrain reads format {FORMAT}: a newer one would do"
            )
        if missing := [name for name in USED if name not in state["sha256"]]:
            raise CheckpointError(f"{place}: its state.json says nothing of {missing[0]}")
        try:
            architecture = _architecture(path, state)
            tasks = _tasks(path, state, architecture)
        except (TypeError, KeyError, ValueError, AttributeError, yaml.YAMLError) as error:
            raise CheckpointError(
                f"{place}: what its state.json says of the model is damaged, or of another version: {error}"
            ) from None
        return cls(place, path, state, architecture, tasks)

    def __repr__(self) -> str:
        return f"<{self.place}: {', '.join(f'{task.name} ({task.modality})' for task in self.tasks.values())}>"

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The resolved recipe of its run. Raises CheckpointError where this polytrain can't read it."""
        from polytrain.recipe_file import load

        try:
            return load(self.path / "recipe.yaml", [])
        except RecipeError as error:
            raise CheckpointError(str(error)) from None

    def task(self, name: str) -> TrainedTask:
        """A task by its name. Raises CheckpointError that names those it has, the nearest first."""
        if name in self.tasks:
            return self.tasks[name]
        near = difflib.get_close_matches(name, self.tasks, 3, 0.5)
        has = ", ".join([*near, *(task for task in self.tasks if task not in near)])
        raise CheckpointError(f"{self.place} has no task {name}; it has {has}")

    def tasks_of(self, modality: str) -> list[TrainedTask]:
        return [task for task in self.tasks.values() if task.modality == modality]

    def views_of(self, modality: str) -> tuple[View, ...]:
        """What its run's final test saw of a file. Raises CheckpointError where the recipe can't be read."""
        return views_at_test(self.architecture.modalities[modality], self.recipe.eval.views_of(modality))

    def predict(self, paths: str | os.PathLike | Sequence, *, task: str | None = None, top: int = 5) -> pa.Table:
        """The `top` likeliest classes of files, in this process: a row a file, task and rank, with the columns path,
        task, rank (from 1), class and probability.

        `paths` are files, folders (sorted by modality) and manifests, here or in a store; `task` is one task, None all
        of a file's modality. A warning names files that can't be read. Raises predict.files.InputError where there is
        none to predict or none could be read, CheckpointError for a task that the model has not.
        """
        from polytrain.predict.here import predict

        return predict(self, paths, task=task, top=top)

    def about(self) -> str:
        """What a stranger should know: tasks and classes, inputs, preprocessing, licence, origin, versions."""
        from polytrain.predict.describing import text

        return text(self)

    def forward(self, device: str = "auto", *, precision: str = "fp32") -> Forward:
        """Its model on a device ("auto": a GPU where torch has one), in fp32, bf16, or "auto" as in training.

        Raises CheckpointError where weights and architecture do not fit each other.
        """
        from polytrain.forward import Forward

        return Forward.of_file(self.architecture, self.path / "model.safetensors", device, precision=precision)

    def portable(self, *, precision: str = "fp32") -> Portable:
        """Its model as it travels to other machines: called there, it is what `forward` gives."""
        from polytrain.forward import Portable

        return Portable.of_file(self.architecture, self.path / "model.safetensors", precision=precision)


# --- where a checkpoint lies --------------------------------------------------------------------------------------


def _checkpoint_at(place: str) -> str:
    """The checkpoint's folder for what a user names. Raises CheckpointError, StorageError."""
    if storage.local_path(place) is not None:
        place = os.path.abspath(os.path.expanduser(storage.local_path(place)))
    found = storage.kind(place)
    if found is pa.fs.FileType.NotFound:
        raise CheckpointError(f"there is nothing at {place}")
    folder = place if found is pa.fs.FileType.Directory else storage.parent(place)
    names = _names(folder)
    if "state.json" in names:
        return folder
    if folder == place:
        for name in ("final", "best"):
            if f"{name}/state.json" in names:
                return storage.join(folder, name)
        if steps := sorted(name for name in names if name.startswith("checkpoints/") and name.endswith("/state.json")):
            return storage.join(folder, *steps[-1].split("/")[:-1])
    if any(name.endswith((".safetensors", ".npz", ".bin", ".pth", ".pt")) for name in names) or folder != place:
        raise CheckpointError(
            f"{place} is no checkpoint of polytrain: no state.json lies there. Other people's weights have no classes "
            f"of yours: jobs/cotrain.py model.init={place} would start from them"
        )
    raise CheckpointError(f"{place} holds no checkpoint: neither state.json nor final, best or checkpoints/step_*")


def _names(folder: str) -> set[str]:
    """Those files of a folder that tell what it is."""
    places = ["state.json", "final/state.json", "best/state.json"]
    found = storage.kinds(storage.join(folder, *name.split("/")) for name in places)
    names = {name for name, info in zip(places, found, strict=True) if info.type is pa.fs.FileType.File}
    if names:
        return names
    store, path = storage.filesystem(folder)
    listed = store.get_file_info(pa.fs.FileSelector(path))
    names = {info.base_name for info in listed}
    if "checkpoints" in names:
        steps = store.get_file_info(pa.fs.FileSelector(f"{path}/checkpoints"))
        states = [f"{step.path}/state.json" for step in steps if step.base_name.startswith("step_")]
        whole = [info.path for info in store.get_file_info(states) if info.type is pa.fs.FileType.File]
        names |= {state.removeprefix(path).lstrip("/") for state in whole}
    return names


def _local(folder: str) -> Path:
    """A folder on this machine with the same content."""
    local = storage.local_path(folder)
    if local is not None:
        return Path(local)
    from polytrain.model.pretrained import WeightsError
    from polytrain.training.initial import local_copy

    try:
        return local_copy(folder)
    except WeightsError as error:
        raise CheckpointError(str(error)) from None


# --- what it says of itself -----------------------------------------------------------------------------------------


def _architecture(path: Path, state: dict[str, Any]) -> Architecture:
    if "architecture" in state:
        return Architecture.from_plain(state["architecture"])
    from polytrain.model.pretrained.own import describe  # checkpoints of before: from the recipe

    return describe(path)[0]


def _tasks(path: Path, state: dict[str, Any], architecture: Architecture) -> dict[str, TrainedTask]:
    """The tasks in the architecture's order."""
    said = state.get("tasks") or _tasks_of_before(path, state, architecture)
    tasks = {}
    for name, head in architecture.tasks.items():
        classes, about = tuple(state["classes"][name]), said[name]
        if len(classes) != head.classes:
            raise ValueError(f"task {name} has {head.classes} classes and {len(classes)} names of classes")
        if head.modality not in MODALITIES or about["loss"] not in ("softmax", "sigmoid"):
            raise ValueError(f"task {name}: modality {head.modality!r}, loss {about['loss']!r}")
        tasks[name] = TrainedTask(name, head.modality, classes, bool(about["multi_label"]), about["loss"])
    return tasks


def _tasks_of_before(path: Path, state: dict[str, Any], architecture: Architecture) -> dict[str, dict[str, Any]]:
    """For checkpoints of before `state.json` held the tasks: from their metrics and the recipe."""
    recipe = yaml.safe_load((path / "recipe.yaml").read_text())
    judged = {**state.get("progress", {}).get("validation", {}), **state.get("results", {}).get("test", {})}
    said = {}
    for name in architecture.tasks:
        several = "mAP" in judged.get(name, {})
        loss = recipe["tasks"][name].get("loss") or ("sigmoid" if several else "softmax")
        said[name] = {"multi_label": several, "loss": loss}
    return said
