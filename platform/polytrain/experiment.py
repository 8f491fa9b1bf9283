"""What a recipe becomes once its manifests are read: tasks, schedule, plan and architecture, checked together.

Everything that can be wrong before a run starts is found here, and found together. No Ray, no MLflow, no torch until
an architecture is counted: `--dry-run` and the tests of every recipe need nothing else.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

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
from polytrain.trained import TrainedTask
from polytrain.training.kept import Kept, kept_before, kept_by

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
    kept: bool = False
    """`train.freeze`: its head stays as `model.init` has it; the task is judged in the test, not trained."""

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
    carried: tuple[TrainedTask, ...] = ()
    """`train.freeze`: tasks of `model.init` that the recipe does not name; every checkpoint serves them, too."""

    @property
    def schedule(self) -> Schedule:
        return self.plan.schedule

    @property
    def modalities(self) -> list[str]:
        """Those that are read; carried tasks may have others."""
        return [name for name in self.architecture.modalities if name in {task.modality for task in self.tasks}]

    @property
    def trained(self) -> list[str]:
        """The tasks that steps are dealt to."""
        return [task.name for task in self.tasks if not task.kept]

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Class names by task, in the order of the architecture's heads."""
        known = {task.name: task.classes for task in (*self.tasks, *self.carried)}
        return {name: known[name] for name in self.architecture.tasks}

    def described_tasks(self) -> dict[str, dict[str, Any]]:
        """What a stranger must know of every task that the checkpoints serve."""
        keys = ("modality", "multi_label", "loss", "metric")
        known = {task.name: task for task in (*self.tasks, *self.carried)}
        return {name: {key: getattr(known[name], key) for key in keys} for name in self.architecture.tasks}

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

    `begun` is the state of a checkpoint of the run, if it has any: then `model.init` is not looked at.
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
    kept = Kept("")
    if recipe.train.freeze:
        kept = kept_before(begun, recipe.model.init) if begun else kept_by(recipe.model)
    tasks = tuple(_task(recipe, name, manifest, kept) for name, manifest in zip(recipe.tasks, read, strict=True))
    _check_kept(tasks, kept)
    schedule = _schedule(recipe, tasks)
    sizes_of_each = [
        manifest.sizes | ({} if test else {"test": 0}) | ({"val": 0} if task.kept else {})
        for task, manifest in zip(tasks, read, strict=True)
    ]
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
    architecture = kept.union(model, architecture)
    experiment = Experiment(recipe, tasks, plan, architecture, carried=kept.carried(recipe.tasks))
    if model.init and begun:
        told = begun["architecture"]
        architecture = replace(architecture, norm_eps=told["norm_eps"], gelu=told["gelu"])
        experiment = replace(experiment, architecture=architecture)
    elif model.init:
        from polytrain.training.initial import judge  # torch, for those alone who start from weights

        frozen = recipe.train.freeze is not None
        architecture, initial = judge(model, architecture, experiment.classes, frozen=frozen)
        experiment = replace(experiment, architecture=architecture, initial=initial)
    return experiment, read


def _schedule(recipe: Recipe, tasks: Sequence[Task]) -> Schedule:
    """Which task each step takes: never one that is kept. Raises RecipeError."""
    budgets = [Budget(settings.steps, settings.warmup_steps, settings.lr) for settings in recipe.tasks.values()]
    trained = [number for number, task in enumerate(tasks) if not task.kept]
    try:
        schedule = make_schedule(recipe.schedule, [budgets[number] for number in trained], recipe.seed)
    except ValueError as error:
        raise RecipeError(f"schedule: {error}") from None
    rates = tuple(budget.lr for budget in budgets)
    return replace(schedule, draws=np.array(trained, np.int16)[schedule.draws], rates=rates)


def _check_kept(tasks: Sequence[Task], kept: Kept) -> None:
    """What a frozen checkpoint and a recipe's tasks do not agree on. Raises RecipeError."""
    faults = []
    for task in tasks:
        known = kept.tasks.get(task.name)
        if known and known.modality != task.modality:
            faults.append(
                f"tasks.{task.name}: {kept.place} has a task of that name that reads {known.modality}; train.freeze "
                f"keeps it, and the new one needs another name"
            )
        elif known and known.classes != task.classes:
            faults.append(
                f"tasks.{task.name}: {kept.place} has a task of that name with other classes, "
                f"{len(known.classes)} of them, {task.manifest} has {len(task.classes)}: {_difference(known, task)}; "
                f"train.freeze keeps its head, and the new one needs another name"
            )
    if not faults and all(task.kept for task in tasks):
        faults.append(
            f"tasks: {kept.place} has heads for all of them, which train.freeze keeps: nothing is left to train"
        )
    if faults:
        raise RecipeError("\n".join(faults))


def _difference(known: TrainedTask, task: Task) -> str:
    """The first class that differs."""
    pairs = zip_longest(known.classes, task.classes)
    number, (theirs, ours) = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
    return f"class {number} is {theirs or 'none'} there and {ours or 'none'} here"


def _groups(recipe: Recipe, manifest: Manifest) -> Groups | None:
    packed = packed_splits(manifest)
    return packed and Groups(packed["train"].sizes, recipe.data.shuffle_window)


def _task(recipe: Recipe, name: str, manifest: Manifest, kept: Kept) -> Task:
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
        kept=name in kept.tasks,
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
