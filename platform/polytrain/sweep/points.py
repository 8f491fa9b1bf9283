"""Which single-task runs a sweep wants: its points, checked before anything starts, and what makes two the same."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from polytrain.data import manifest as manifests
from polytrain.data.manifest import Manifest
from polytrain.experiment import Experiment, open_experiment
from polytrain.model.architecture import forward_flops
from polytrain.recipe import SWEEP_KEYS, Recipe, RecipeError, Task, check

TRIALS_VERSION = 1
"""Raise it when a change of the code gives trials other results: no earlier trial counts any more."""

PAPER_GRID = {"lr": [0.03, 0.1, 0.3]}
"""PolyViT, section 4: learning rates of the image tasks, with SGD."""

MOST_TRIALS = 1_000


@dataclass(frozen=True)
class Point:
    """One single-task run."""

    task: str
    values: dict[str, Any]  # by the grid's keys
    recipe: Recipe
    fingerprint: str
    metric: str  # what it is judged by: top1 or mAP

    @property
    def label(self) -> str:
        return label(self.values)

    @property
    def folder(self) -> Path:
        """Its run folder: the same for every sweep that wants it."""
        return Path(self.recipe.output) / "trials" / f"{self.task}-{self.fingerprint}"


@dataclass(frozen=True)
class Range:
    """What tpe may draw a value from: both ends included."""

    low: float
    high: float

    @property
    def whole(self) -> bool:
        """Whether values are integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def log(self) -> bool:
        """Whether values are drawn evenly by their logarithm: where the ends are a factor of ten apart."""
        return self.low > 0 and self.high / self.low >= 10


@dataclass(frozen=True)
class TaskSpace:
    """What a sweep searches for one task, the points of a grid or the ranges of a search."""

    task: str
    cost: float  # FLOPs of a trial: long ones go first
    grid: Mapping[str, Sequence[Any]]
    ranges: Mapping[str, Range]
    trials: int


@dataclass(frozen=True)
class Space:
    """A checked sweep: what it is made of, and how a point becomes a run."""

    recipe: Recipe
    experiment: Experiment  # of the selected tasks
    manifests: Mapping[str, Manifest]  # by path
    tasks: tuple[TaskSpace, ...]

    def point(self, task: str, values: Mapping[str, Any]) -> Point:
        """The point of a task at these values. Raises RecipeError."""
        return make_point(self.recipe, task, values, self.manifests.__getitem__)

    def grid(self) -> Iterator[Point]:
        """All points of a grid, a task after the other; none for a search."""
        for of_task in self.tasks:
            if not of_task.ranges:
                for values in itertools.product(*of_task.grid.values()):
                    yield self.point(of_task.task, dict(zip(of_task.grid, values, strict=True)))

    @property
    def digest(self) -> str:
        """Eight hex digits of everything that this sweep asks for."""
        asked: list[Any] = [self.recipe.search.sampler, self.recipe.sweep.test]
        asked += sorted(point.fingerprint for point in self.grid())
        for of_task in self.tasks:
            if of_task.ranges:
                ranges = {key: [r.low, r.high] for key, r in of_task.ranges.items()}
                middle = self.point(of_task.task, {key: r.low for key, r in of_task.ranges.items()})
                asked += [of_task.task, ranges, of_task.trials, middle.fingerprint]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]


def open_space(recipe: Recipe) -> Space:
    """Check a recipe as a sweep, all of it. Raises RecipeError."""
    names = _selected(recipe)
    recipe = recipe.model_copy(update={"tasks": {name: recipe.tasks[name] for name in names}})
    read = lru_cache(maxsize=None)(manifests.read)
    experiment, opened = open_experiment(recipe, read_manifest=read)
    by_path = {task.manifest: manifest for task, manifest in zip(recipe.tasks.values(), opened, strict=True)}
    keys = _ranges(recipe) if recipe.search.sampler == "tpe" else _grid(recipe)
    _check_keys(recipe, keys)
    spaces = []
    for planned in experiment.plan.tasks:
        mine = _of_task(planned.name, keys)
        steps = recipe.tasks[planned.name].steps
        cost = forward_flops(experiment.architecture, planned.name) * planned.batch_size * steps
        if recipe.search.sampler == "tpe":
            spaces.append(TaskSpace(planned.name, cost, {}, mine, recipe.search.trials or 0))
        else:
            spaces.append(TaskSpace(planned.name, cost, mine, {}, math.prod(map(len, mine.values()))))
    space = Space(recipe, experiment, by_path, tuple(spaces))
    if (wanted := sum(of_task.trials for of_task in spaces)) > MOST_TRIALS:
        raise RecipeError(f"grid: these are {wanted:,} trials; at most {MOST_TRIALS:,} are run at once")
    _check_points(space)
    return space


def make_point(recipe: Recipe, task: str, values: Mapping[str, Any], read_manifest: Any = manifests.read) -> Point:
    """A task's single-task recipe at these values: only that task, its own steps and warm-up. Raises RecipeError."""
    tree = recipe.plain()
    tree["tasks"] = {task: tree["tasks"][task]}
    # The geometry of other modalities is no part of the trial.
    modality = tree["tasks"][task]["modality"]
    tree["modalities"] = {modality: tree["modalities"][modality]}
    tree["schedule"] = "weighted"  # every kind is the same for one task
    tree["train"] |= {"workers": 1}
    for key in SWEEP_KEYS:
        tree.pop(key, None)
    for key, value in values.items():
        *parents, last = path_of(task, key).split(".")
        section = tree
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise RecipeError(f"grid.{key}: the recipe has no such key: {'.'.join(parents)} is no section")
        section[last] = value
    source = ", ".join(f"grid.{key} = {value}" for key, value in values.items()) or f"tasks.{task}"
    made = check(tree, source=source)
    try:
        experiment, (manifest,) = open_experiment(made, read_manifest=read_manifest)
    except RecipeError as error:
        raise RecipeError("\n".join(f"{source}: {line}" for line in str(error).splitlines())) from None
    plain = made.plain()
    settled = {key: _at(plain, path_of(task, key)) for key in values}
    return Point(task, settled, made, fingerprint(made, experiment, manifest.digest), experiment.tasks[0].metric)


def path_of(task: str, key: str) -> str:
    """A grid's key as a path of the recipe: a key without dots is the task's."""
    return key if "." in key else f"tasks.{task}.{key}"


def _at(tree: Any, path: str) -> Any:
    for key in path.split("."):
        tree = tree[key]
    return tree


def fingerprint(recipe: Recipe, experiment: Experiment, manifest_digest: str) -> str:
    """Sixteen hex digits that two single-task runs share if they are the same."""
    (task,) = recipe.tasks
    walk = experiment.plan.tasks[0].identity().get("groups")  # a packed collection's order depends on how it lies
    identity = {"version": TRIALS_VERSION, "task": task, "seed": recipe.seed, "precision": recipe.train.precision}
    identity |= {"walk": walk, "loss": experiment.tasks[0].loss} | conditions(recipe, task, manifest_digest)
    identity |= {f"tasks.{key}": value for key, value in recipe.plain()["tasks"][task].items() if key != "manifest"}
    if recipe.model.init:
        from polytrain.training.initial import digest  # torch, for those alone who start from weights

        identity |= {"init": digest(recipe.model.init), "freeze": recipe.train.freeze}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def conditions(recipe: Recipe, task: str, manifest_digest: str) -> dict[str, Any]:
    """What hyperparameters were found under, by path of the recipe: model, geometry, optimizer, examples and steps."""
    plain = recipe.plain()
    settings: Task = recipe.tasks[task]
    plain["model"].pop("size")  # a name for numbers that stand beside it
    found = {f"tasks.{task}.manifest": manifest_digest}
    found |= {f"tasks.{task}.{key}": getattr(settings, key) for key in ("steps", "warmup_steps", "batch_size")}
    for section in ("model", "optimizer"):
        found |= {f"{section}.{key}": value for key, value in plain[section].items()}
    geometry = plain["modalities"][settings.modality]
    return found | {f"modalities.{settings.modality}.{key}": value for key, value in geometry.items()}


def label(values: Mapping[str, Any]) -> str:
    """ "lr=0.03", with more keys "lr=0.03 weight_decay=0"."""
    return " ".join(
        f"{key.rsplit('.', 1)[-1]}={f'{value:.6g}' if isinstance(value, float) else value}"
        for key, value in values.items()
    )


# --- what the user asked for ----------------------------------------------------------------------------------------


def _selected(recipe: Recipe) -> list[str]:
    wanted = recipe.sweep.tasks
    if wanted is None:
        return list(recipe.tasks)
    if not wanted:
        raise RecipeError("tasks: selects no task; leave it out to sweep all of them")
    for name in wanted:
        if name not in recipe.tasks:
            close = difflib.get_close_matches(name, recipe.tasks, 1, 0.5)
            hint = f"did you mean {close[0]}?" if close else f"its tasks are {', '.join(recipe.tasks)}"
            raise RecipeError(f"tasks: the recipe has no task {name}; {hint}")
    return [name for name in recipe.tasks if name in wanted]


def _grid(recipe: Recipe) -> dict[str, list[Any]]:
    """The grid's values by key. Raises RecipeError."""
    if extra := recipe.search.model_extra:
        key = next(iter(extra))
        close = difflib.get_close_matches(key, ["sampler", "trials"], 1, 0.6)
        hint = f"did you mean {close[0]}?" if close else "ranges are for search.sampler=tpe"
        raise RecipeError(f"search.{key}: {hint}; for a grid write grid.{key}=[...]")
    if recipe.search.trials is not None:
        raise RecipeError("search.trials: a grid runs all of its points; search.sampler=tpe takes a number of trials")
    if recipe.grid is None:
        if recipe.optimizer.name != "sgd":
            raise RecipeError(
                f"grid: there is none, and the paper's (lr: {PAPER_GRID['lr']}) is for sgd, not for "
                f"{recipe.optimizer.name}; grid.lr=[...] would name the rates to try"
            )
        return dict(PAPER_GRID)
    grid = dict(_flat(recipe.grid))
    if not grid:
        raise RecipeError("grid: is empty; grid.lr=[0.03,0.1,0.3] would be one")
    for key, values in grid.items():
        if not isinstance(values, list):
            raise RecipeError(f"grid.{key}: {values!r} is no list; grid.{key}=[{values}] would be")
        if not values:
            raise RecipeError(f"grid.{key}: is empty; name at least one value")
    return grid


def _ranges(recipe: Recipe) -> dict[str, Range]:
    """The ranges of a search by key. Raises RecipeError."""
    if recipe.grid is not None:
        raise RecipeError("grid: search.sampler=tpe draws from ranges; write search.KEY=[low,high] instead of grid.KEY")
    ranges = {}
    for key, ends in _flat(recipe.search.model_extra or {}):
        close = difflib.get_close_matches(key, ["sampler", "trials"], 1, 0.6)
        if close:
            raise RecipeError(f"search.{key}: unknown key; did you mean search.{close[0]}?")
        numbers = isinstance(ends, list) and len(ends) == 2 and all(type(end) in (int, float) for end in ends)
        if not numbers or not ends[0] < ends[1]:
            raise RecipeError(f"search.{key}: {ends!r} is no range; [low, high] would be, low below high")
        ranges[key] = Range(*ends)
    if not ranges:
        raise RecipeError("search: tpe needs a range to search; search.lr=[0.001,1] would be one")
    if recipe.search.trials is None:
        raise RecipeError("search.trials: missing; tpe needs the number of trials of each task")
    return ranges


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _of_task(task: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that concern one task: those of other tasks fall away, and its own (tasks.NAME.lr) go before lr."""
    own = {
        key: value for key, value in keys.items() if not key.startswith("tasks.") or key.startswith(f"tasks.{task}.")
    }
    return {key: value for key, value in own.items() if "." in key or f"tasks.{task}.{key}" not in own}


def _check_keys(recipe: Recipe, keys: Mapping[str, Any]) -> None:
    for key in keys:
        parts = key.split(".")
        if parts[0] in SWEEP_KEYS or parts[-1] in ("modality", "manifest"):
            raise RecipeError(f"grid.{key}: is nothing to search")
        if parts[0] == "tasks" and parts[1] not in recipe.tasks:
            raise RecipeError(f"grid.{key}: the sweep has no task {parts[1]}")


def _check_points(space: Space) -> None:
    """Make every point, or the corners of every range, and see that values make a difference."""
    for of_task in space.tasks:
        choices = of_task.grid or {key: [r.low, r.high] for key, r in of_task.ranges.items()}
        first = {key: values[0] for key, values in choices.items()}
        # Key by key, the others at their first value: a fault is told without making all of a large grid twice.
        for key, values in choices.items():
            made = [space.point(of_task.task, first | {key: value}) for value in values]
            seen = {point.fingerprint: point for point in made}
            if len(seen) < len(made):
                settled = {point.values[key] for point in made if not isinstance(point.values[key], list)}
                what = "a value stands twice" if len(settled) < len(made) else "makes no difference to a trial"
                raise RecipeError(f"grid.{key}: {what}")
