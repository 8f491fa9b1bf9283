"""What a probe is: a model that stays as it is, the tasks that it is asked, and the points of each task's grid.

Everything that can be wrong is found here, before anything starts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from polytrain.data import storage
from polytrain.data.examples import Examples, examples_of
from polytrain.data.manifest import Manifest
from polytrain.experiment import Experiment, Task, open_experiment
from polytrain.model.architecture import Architecture
from polytrain.model.pretrained import Report, Source, WeightsError, open_source
from polytrain.recipe import Model, Recipe, RecipeError
from polytrain.recipe_file import load
from polytrain.sweep.points import Point, Space, open_space, path_of
from polytrain.trained import Trained
from polytrain.training.checkpoint import CheckpointError
from polytrain.training.initial import digest, judge, local_copy
from polytrain.training.kept import NUMBERS, kept_by

TUBELETS = {"paper": "repeat", "code": "central"}
"""What `probe.conversion` is as `model.init_tubelet`."""

SEARCHED = ("tasks.", "optimizer.")
"""A grid's keys are of these: all else would change the features."""


@dataclass(frozen=True)
class Probed:
    """The model that is asked: a checkpoint of ours, or other people's weights."""

    place: str
    kind: str
    weights: str  # a digest of the file
    trained: Trained | None  # None: other people's

    @property
    def run_id(self) -> str | None:
        """The MLflow run that trained it, where that is known."""
        if self.trained is None:
            return None
        for folder in (self.trained.path.parent, self.trained.path.parent.parent):
            try:
                return json.loads((folder / "run.json").read_text())["run_id"]
            except (OSError, ValueError, KeyError):
                continue
        return None


@dataclass(frozen=True, eq=False)
class ProbedTask:
    """A task that the model is asked."""

    task: Task
    manifest: Manifest
    points: tuple[Point, ...]
    random: str
    """What makes an example's features others at every step; "" where nothing does, and they are computed once."""
    loop: Recipe | None
    """The same as a co-training run with `train.freeze`, where there is one."""

    @property
    def name(self) -> str:
        return self.task.name

    @cached_property
    def examples(self) -> dict[str, Examples]:
        return examples_of(self.manifest)


@dataclass(frozen=True, eq=False)
class Probing:
    """A probe that can start."""

    probed: Probed
    recipe: Recipe
    """The user's, with the model of the checkpoint: it names the weights as `model.init`."""
    space: Space
    architecture: Architecture
    """The trunk with a head for each task."""
    report: Report
    tasks: tuple[ProbedTask, ...]

    @property
    def digest(self) -> str:
        """Eight hex digits of everything that decides the result."""
        views = {task.task.modality: self.recipe.eval.views_of(task.task.modality) for task in self.tasks}
        asked = [self.probed.weights, sorted(point.fingerprint for task in self.tasks for point in task.points), views]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def folder(self) -> Path:
        return Path(self.recipe.output) / f"{self.recipe.name}-probe-{self.digest}"

    def experiment(self, point: Point) -> Experiment:
        """A point as a run of its own."""
        if point.fingerprint not in self._experiments:
            opened, _ = open_experiment(point.recipe, read_manifest=self.space.manifests.__getitem__)
            self._experiments[point.fingerprint] = opened
        return self._experiments[point.fingerprint]

    @cached_property
    def _experiments(self) -> dict[str, Experiment]:
        return {}

    def loop_architecture(self, task: ProbedTask) -> Architecture:
        """The model that the co-training loop would make for a task: its random draws, too, are the head's."""
        recipe = task.loop or task.points[0].recipe
        return open_experiment(recipe, read_manifest=self.space.manifests.__getitem__)[0].architecture


def open_probing(
    place: str, recipe_path: str, overrides: Sequence[str], prepare: Callable[[Recipe], None] = lambda recipe: None
) -> Probing:
    """Open the model and the recipe's tasks; `prepare` makes what media the recipe wants made.

    Raises CheckpointError for a model that can't be opened, RecipeError for everything else that is wrong.
    """
    probed, source = _probed(place)
    recipe = load(recipe_path, overrides, under=_geometries(probed))
    recipe = _of_model(recipe, probed, source)
    prepare(recipe)
    if recipe.search.sampler != "grid":
        raise RecipeError(f"search.sampler: a probe runs a grid, {recipe.search.sampler} is for jobs/sweep.py")
    space = open_space(recipe)
    experiment = space.experiment
    classes = {task.name: task.classes for task in experiment.tasks}
    # As frozen: what stays fresh would stay random for ever.
    architecture, report = judge(space.recipe.model, experiment.architecture, classes, frozen=True)
    kept = kept_by(space.recipe.model).tasks if probed.trained else {}
    tasks = tuple(_task(space, task, kept) for task in experiment.tasks)
    return Probing(probed, space.recipe, space, architecture, report, tasks)


# --- the model --------------------------------------------------------------------------------------------------------


def _probed(place: str) -> tuple[Probed, Source | None]:
    try:
        trained = Trained.open(place)
    except CheckpointError as fault:
        try:
            path = local_copy(os.path.abspath(os.path.expanduser(place)) if "://" not in place else place)
            source = open_source(path, shapes_only=True)
        except WeightsError:
            raise fault from None
        place = place if "://" in place else str(path)
        return Probed(place, source.kind, digest(place), None), source
    return Probed(trained.place, "a checkpoint of polytrain", digest(trained.place), trained), None


def _geometries(probed: Probed) -> dict[str, dict[str, Any]]:
    """The geometry that a checkpoint knows, for a recipe that gives none."""
    if probed.trained is None:
        return {}
    known = probed.trained.architecture.modalities
    return {"modalities": {name: json.loads(json.dumps(asdict(geometry))) for name, geometry in known.items()}}


def _of_model(recipe: Recipe, probed: Probed, source: Source | None) -> Recipe:
    """The recipe with the probed model as its own. Raises RecipeError where it says another."""
    if storage.is_remote(recipe.output):
        raise RecipeError(f"output: {recipe.output} is a URI, and a probe keeps features on a disk; name a folder")
    if recipe.model.init not in (None, probed.place):
        raise RecipeError("model.init: the model that is probed stands first on the command line; leave the key out")
    numbers: dict[str, Any] = {}
    if probed.trained is not None:
        numbers = {key: getattr(probed.trained.architecture, key) for key in (*NUMBERS, "norm_eps", "gelu")}
    given = recipe.model.model_fields_set
    faults = [
        f"model.{key}: {getattr(recipe.model, key)} was asked for, but {probed.place} has {value}; leave model out"
        for key, value in numbers.items()
        if key in given and getattr(recipe.model, key) not in (None, value)
    ]
    if faults:
        raise RecipeError("\n".join(faults))
    if source is not None and not given & {*NUMBERS, "size"}:
        has = {"depth": source.depth, "width": source.width, "mlp_width": source.mlp_width, "heads": source.heads}
        numbers = {key: value for key, value in has.items() if value is not None}
    kept = {key: value for key, value in recipe.model.model_dump().items() if key not in ("size", *numbers)}
    tubelet = TUBELETS[recipe.probe.conversion]
    model = Model(**kept | numbers | {"init": probed.place, "init_tubelet": tubelet})
    return recipe.model_copy(update={"model": model})


# --- the tasks --------------------------------------------------------------------------------------------------------


def _task(space: Space, task: Task, kept: Mapping[str, Any]) -> ProbedTask:
    of_task = next(one for one in space.tasks if one.task == task.name)
    for key in of_task.grid:
        if not path_of(task.name, key).startswith(SEARCHED):
            raise RecipeError(f"grid.{key}: a probe searches keys of tasks and of optimizer")
    points = tuple(point for point in space.grid() if point.task == task.name)
    manifest = space.manifests[space.recipe.tasks[task.name].manifest]
    if len(points) > 1 and not manifest.sizes["val"]:
        raise RecipeError(
            f"tasks.{task.name}.manifest: {manifest.uri} has no val split, by which the best of {len(points)} points "
            f"would be chosen; grid.tasks.{task.name}.lr=[...] with one value needs none"
        )
    random = next(filter(None, (_random(point.recipe.tasks[task.name], space.recipe.model) for point in points)), "")
    loop, fault = _as_loop(points[0], task.name, kept, space)
    if random and fault:
        raise RecipeError(f"tasks.{task.name}: {random} takes the ordinary loop with train.freeze, and\n{fault}")
    return ProbedTask(task, manifest, points, random, loop)


def _random(settings: Any, model: Model) -> str:
    """What changes the features of an example from step to step."""
    if settings.augment != "none":
        return f"augment: {settings.augment}"
    if settings.mixup_alpha:
        return f"mixup_alpha: {settings.mixup_alpha:g}"
    drop_path = model.drop_path if settings.drop_path is None else settings.drop_path
    return f"drop_path: {drop_path:g}" if drop_path else ""


def _as_loop(point: Point, task: str, kept: Mapping[str, Any], space: Space) -> tuple[Recipe | None, str]:
    """A point as a co-training run that freezes the model, or why there is no such run."""
    if task in kept:
        return None, (
            f"tasks.{task}: {space.recipe.model.init} serves a task of that name, whose head such a run would keep; "
            f"give the probed one another name"
        )
    recipe = frozen(point.recipe)
    try:
        open_experiment(recipe, read_manifest=space.manifests.__getitem__)
    except RecipeError as error:
        return None, str(error)
    return recipe, ""


def frozen(recipe: Recipe) -> Recipe:
    """The recipe with `train.freeze`."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"freeze": "encoder"})})


def loop_recipe(probing: Probing, tasks: Sequence[ProbedTask]) -> Recipe:
    """These tasks as a sweep through the frozen model: the same grid, tested."""
    recipe = frozen(probing.recipe)
    sweep = recipe.sweep.model_copy(update={"tasks": [task.name for task in tasks], "test": True})
    return recipe.model_copy(update={"sweep": sweep})
