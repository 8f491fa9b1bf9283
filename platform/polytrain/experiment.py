"""What a recipe becomes once its manifests are read: tasks, schedule, plan and architecture, checked together.

Everything that can be wrong before a run starts is found here, and found together. No Ray, no MLflow, no torch until
an architecture is counted: `--dry-run` and the tests of every recipe need nothing else.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from polytrain.data import manifest as manifests
from polytrain.data import storage
from polytrain.data.augmentation import Augmentation, augmentation
from polytrain.data.examples import Examples, examples_of
from polytrain.data.manifest import Manifest, ManifestError
from polytrain.data.packed import packed_splits
from polytrain.model.architecture import Architecture, Head
from polytrain.plan import Groups, Plan, PlannedTask
from polytrain.recipe import NO_SMOOTHING, Recipe, RecipeError
from polytrain.schedule import Budget, Schedule, make_schedule

if TYPE_CHECKING:
    from polytrain.model.pretrained import Report

HEAD_INIT = {"image": "lecun_normal", "video": "zeros", "audio": "zeros"}
"""PolyViT, Table 6."""


@dataclass(frozen=True)
class Task:
    """A task of the recipe with what its manifest says."""

    name: str
    modality: str
    classes: tuple[str, ...]
    multi_label: bool
    loss: str
    drop_path: float
    mixup_alpha: float
    label_smoothing: float
    augmentation: Augmentation
    manifest: str
    digest: str

    @property
    def metric(self) -> str:
        """The metric a task is judged by: mAP where examples carry several labels, else top1."""
        return "mAP" if self.multi_label else "top1"


@dataclass(frozen=True)
class Experiment:
    """A run that can start."""

    recipe: Recipe
    tasks: tuple[Task, ...]
    plan: Plan
    architecture: Architecture
    initial: Report | None = None
    """What `model.init` fills."""

    @property
    def schedule(self) -> Schedule:
        return self.plan.schedule

    def state_digests(self) -> dict[str, str]:
        """Each task's manifest digest: a checkpoint goes on only with the same examples."""
        return {task.name: task.digest for task in self.tasks}


def open_experiment(
    recipe: Recipe,
    *,
    test: bool = True,
    read_manifest: Callable[[str], Manifest] = manifests.read,
    begun: Mapping[str, Any] | None = None,
) -> tuple[Experiment, list[Manifest]]:
    """Read a recipe's manifests and put the experiment together, with a final test or without (`test`).

    `begun` is the architecture that the run's checkpoints tell of, if it has any: then `model.init` is not looked at.
    Raises RecipeError with a line a fault.
    """
    faults: list[str] = []
    read: list[Manifest] = []
    for name, settings in recipe.tasks.items():
        try:
            manifest = read_manifest(settings.manifest)
        except ManifestError as error:
            faults.append(f"tasks.{name}.manifest: {error}")
            continue
        read.append(manifest)
        faults += [f"tasks.{name}.{fault}" for fault in _disagreements(settings, manifest)]
    if faults:
        raise RecipeError("\n".join(faults))
    tasks = tuple(_task(recipe, name, manifest) for name, manifest in zip(recipe.tasks, read, strict=True))
    budgets = [Budget(settings.steps, settings.warmup_steps, settings.lr) for settings in recipe.tasks.values()]
    try:
        schedule = make_schedule(recipe.schedule, budgets, recipe.seed)
    except ValueError as error:
        raise RecipeError(f"schedule: {error}") from None
    sizes_of_each = [manifest.sizes | ({} if test else {"test": 0}) for manifest in read]
    planned = [
        PlannedTask(
            t.name,
            t.modality,
            recipe.tasks[t.name].batch_size,
            sizes,
            t.digest,
            t.mixup_alpha,
            _groups(recipe, manifest),
            math.prod(recipe.eval.views_of(t.modality)),
        )
        for t, sizes, manifest in zip(tasks, sizes_of_each, read, strict=True)
    ]
    plan = Plan(schedule, planned, seed=recipe.seed, eval_every=recipe.train.eval_every)
    model = recipe.model
    architecture = Architecture(
        depth=model.depth,
        width=model.width,
        heads=model.heads,
        mlp_width=model.mlp_width,
        adaptor_layers=model.adaptor_layers,
        **{key: value for key in ("norm_eps", "gelu") if (value := getattr(model, key)) is not None},
        modalities=recipe.geometries(),
        tasks={
            t.name: Head(t.modality, len(t.classes), recipe.tasks[t.name].head_init or HEAD_INIT[t.modality])
            for t in tasks
        },
    )
    initial = None
    if model.init and begun:
        architecture = replace(architecture, norm_eps=begun["norm_eps"], gelu=begun["gelu"])
    elif model.init:
        from polytrain.training.initial import judge  # torch, for those alone who start from weights

        architecture, initial = judge(model, architecture, {t.name: t.classes for t in tasks})
    return Experiment(recipe, tasks, plan, architecture, initial), read


def _groups(recipe: Recipe, manifest: Manifest) -> Groups | None:
    packed = packed_splits(manifest)
    return packed and Groups(packed["train"].sizes, recipe.data.shuffle_window)


def _task(recipe: Recipe, name: str, manifest: Manifest) -> Task:
    settings = recipe.tasks[name]
    return Task(
        name=name,
        modality=settings.modality,
        classes=manifest.classes,
        multi_label=manifest.multi_label,
        loss=settings.loss or ("sigmoid" if manifest.multi_label else "softmax"),
        drop_path=recipe.model.drop_path if settings.drop_path is None else settings.drop_path,
        mixup_alpha=settings.mixup_alpha,
        label_smoothing=settings.label_smoothing,
        augmentation=augmentation(settings.augment, settings.augment_magnitude),
        manifest=settings.manifest,
        digest=manifest.digest,
    )


def _disagreements(settings: Any, manifest: Manifest) -> list[str]:
    """What a task's recipe and its manifest do not agree on."""
    faults = []
    if manifest.modality != settings.modality:
        faults.append(f"modality: the recipe says {settings.modality}, {manifest.uri} says {manifest.modality}")
    size = manifest.sizes["train"]
    if settings.batch_size > size:
        faults.append(f"batch_size: {settings.batch_size} is more than the {size} training examples of {manifest.uri}")
    if settings.loss == "softmax" and manifest.multi_label:
        faults.append(f"loss: softmax needs one label an example, {manifest.uri} has several; sigmoid would be right")
    if settings.label_smoothing and settings.loss is None and manifest.multi_label:
        faults.append(f"label_smoothing: {NO_SMOOTHING.format(settings.label_smoothing)}")
    missing = missing_media(manifest)
    if missing:
        faults.append(
            f"manifest: {manifest.uri} names media that are not there, {missing} the first; "
            f"were they moved away from the manifest?"
        )
    return faults


def missing_media(manifest: Manifest, looks: int = 20) -> str | None:
    """The first of up to `looks` evenly spaced local training files if NONE of them is there: single missing files
    are bad media and get replaced, but a whole collection elsewhere is a mistake to be told before the start."""
    examples = all_splits(manifest)["train"]
    step = max(1, len(examples) // looks)
    probes = [examples.file(example) for example in range(0, len(examples), step)]
    local = [path for path in map(storage.local_path, filter(None, probes)) if path]
    return local[0] if local and not any(os.path.exists(path) for path in local) else None


def all_splits(manifest: Manifest) -> dict[str, Examples]:
    """The examples of each split. Raises ManifestError where a packed manifest does not fit its shards."""
    return examples_of(manifest)
