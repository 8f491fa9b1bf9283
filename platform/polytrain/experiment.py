"""What a recipe becomes once its manifests are read: tasks, schedule, plan and architecture, checked together.

Everything that can be wrong before a run starts is found here, and found together. No Ray, no MLflow, no torch until
an architecture is counted: `--dry-run` and the tests of every recipe need nothing else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from polytrain.data import manifest as manifests
from polytrain.data.manifest import SPLITS, Manifest, ManifestError
from polytrain.model.architecture import Architecture, Head
from polytrain.plan import Plan, PlannedTask
from polytrain.recipe import Recipe, RecipeError
from polytrain.schedule import Budget, Schedule, make_schedule

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

    @property
    def schedule(self) -> Schedule:
        return self.plan.schedule

    def state_digests(self) -> dict[str, str]:
        """Each task's manifest digest: a checkpoint goes on only with the same examples."""
        return {task.name: task.digest for task in self.tasks}


def open_experiment(recipe: Recipe) -> tuple[Experiment, list[Manifest]]:
    """Read a recipe's manifests and put the experiment together. Raises RecipeError with a line a fault."""
    faults: list[str] = []
    read: list[Manifest] = []
    for name, settings in recipe.tasks.items():
        try:
            manifest = manifests.read(settings.manifest)
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
    planned = [
        PlannedTask(t.name, t.modality, recipe.tasks[t.name].batch_size, manifest.sizes, t.digest, t.mixup_alpha)
        for t, manifest in zip(tasks, read, strict=True)
    ]
    plan = Plan(schedule, planned, seed=recipe.seed, eval_every=recipe.train.eval_every)
    model = recipe.model
    architecture = Architecture(
        depth=model.depth,
        width=model.width,
        heads=model.heads,
        mlp_width=model.mlp_width,
        adaptor_layers=model.adaptor_layers,
        modalities=recipe.geometries(),
        tasks={
            t.name: Head(t.modality, len(t.classes), recipe.tasks[t.name].head_init or HEAD_INIT[t.modality])
            for t in tasks
        },
    )
    return Experiment(recipe, tasks, plan, architecture), read


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
    paths = located(manifest, "train")["path"]
    step = max(1, len(paths) // looks)
    probes = [path for path in (paths[index].as_py() for index in range(0, len(paths), step)) if path]
    local = [path for path in probes if "://" not in path]
    return local[0] if local and not any(os.path.exists(path) for path in local) else None


def located(manifest: Manifest, split: str) -> pa.Table:
    """One split's rows with paths made absolute, at once for millions of rows."""
    table = manifest.split(split).drop_columns(["split"]).combine_chunks()
    paths = table["path"]
    folder = manifest.location("x")[:-1]
    relative = pc.invert(pc.match_substring_regex(paths, r"^/|://"))
    joined = pc.binary_join_element_wise(pa.scalar(folder), paths, "")
    return table.set_column(table.column_names.index("path"), "path", pc.if_else(relative, joined, paths))


def all_splits(manifest: Manifest) -> dict[str, pa.Table]:
    return {split: located(manifest, split) for split in SPLITS}
