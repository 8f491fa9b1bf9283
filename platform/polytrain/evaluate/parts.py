"""What an evaluation judges: splits of tasks that a checkpoint knows, each over its views."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from polytrain.data import manifest as manifests
from polytrain.data import storage
from polytrain.data.examples import Examples, examples_of
from polytrain.data.manifest import Manifest, ManifestError
from polytrain.data.views import View, views_at_test
from polytrain.experiment import missing_media
from polytrain.modalities import Geometry
from polytrain.recipe import Recipe, RecipeError
from polytrain.recipe_file import load
from polytrain.report import table
from polytrain.trained import Trained, TrainedTask


@dataclass(frozen=True)
class Asked:
    """The words of the command line, sorted."""

    checkpoint: str
    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("val", "test")
    tasks: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class Part:
    """One split of one task."""

    split: str
    task: TrainedTask
    manifest: Manifest
    examples: Examples
    geometry: Geometry
    clips_and_crops: tuple[int, int]
    model_class: tuple[int, ...]
    """The model's number of each of the manifest's classes."""
    in_training: float | None
    """What the training run said of the same examples over the same views, percent."""

    @property
    def key(self) -> str:
        return f"{self.split}/{self.task.name}"

    @property
    def file_name(self) -> str:
        """Its files' names without ending: the test's are the task's, as in a training run."""
        return self.task.name if self.split == "test" else f"{self.task.name}.{self.split}"

    @property
    def views(self) -> tuple[View, ...]:
        return views_at_test(self.geometry, self.clips_and_crops)

    def classes_of(self, labels: Sequence[Sequence[int]]) -> list[list[int]]:
        """The manifest's labels of some examples as the model numbers them."""
        return [[self.model_class[label] for label in of_example] for of_example in labels]


@dataclass(frozen=True, eq=False)
class Question:
    """Everything that an evaluation judges, and what the user should know about it before."""

    trained: Trained
    recipe: Recipe
    parts: tuple[Part, ...]
    notices: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Eight hex digits of weights, examples and views: the same question has the same answer."""
        asked = [[part.key, part.manifest.digest, part.clips_and_crops] for part in self.parts]
        weights = self.trained.state["sha256"]["model.safetensors"]
        return hashlib.sha256(json.dumps([weights, asked]).encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        return f"{self.recipe.name}-evaluate-{self.digest}"

    @property
    def place(self) -> str:
        """Where the results go."""
        return storage.join(self.recipe.output, self.name)

    def text(self) -> str:
        """A line a part."""
        header = ["task", "split", "modality", "classes", "examples", "views", "manifest"]
        rows = [
            [part.task.name, part.split, part.task.modality, len(part.task.classes), f"{len(part.examples):,}",
             len(part.views), part.manifest.uri]
            for part in self.parts
        ]  # fmt: skip
        return table(header, rows) + f"\n\nwritten: {self.place}"


def open_question(asked: Asked, *, prepare: Callable[[Recipe], None] = lambda recipe: None) -> Question:
    """Open the checkpoint, the recipe (the checkpoint's own unless asked otherwise) and the manifests of its tasks.

    `prepare` is given a recipe that was asked for before its manifests are read. Raises RecipeError with a line a
    fault, CheckpointError for a checkpoint that can't be used, or has no such task.
    """
    trained = Trained.open(asked.checkpoint)
    geometries = trained.architecture.plain()["modalities"]
    recipe = load(asked.recipe or trained.path / "recipe.yaml", asked.overrides, under={"modalities": geometries})
    if asked.recipe:
        prepare(recipe)
    elif not (storage.is_remote(recipe.output) or os.path.isdir(recipe.output) or _says(asked, "output")):
        # A checkpoint of another machine: the folders there are nothing to this one.
        recipe = recipe.model_copy(update={"output": os.path.abspath("runs")})
    names, notices = _names(trained, recipe, asked.tasks)
    faults: list[str] = []
    parts: list[Part] = []
    for name in names:
        try:
            of_task, said = _parts_of(trained, recipe, name, asked.splits)
        except (ManifestError, RecipeError) as error:
            faults += [f"tasks.{name}: {line}" for line in str(error).splitlines()]
            continue
        parts += of_task
        notices += said
    if faults:
        raise RecipeError("\n".join(faults))
    if not parts:
        raise RecipeError(f"splits: there is no example in {_listed(asked.splits)} of {_listed(names)}")
    parts.sort(key=lambda part: asked.splits.index(part.split))
    return Question(trained, recipe, tuple(parts), tuple(notices))


def _says(asked: Asked, key: str) -> bool:
    return any(word.startswith(f"{key}=") for word in asked.overrides)


def _names(trained: Trained, recipe: Recipe, asked: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The tasks to judge, and what to tell of those passed over."""
    if asked is not None:
        names = [trained.task(name).name for name in asked]
        if without := [name for name in names if name not in recipe.tasks]:
            raise RecipeError(
                f"tasks: the recipe names no examples of {_listed(without)}; a RECIPE that does would be right"
            )
        return names, []
    names = [name for name in recipe.tasks if name in trained.tasks]
    if not names:
        raise RecipeError(
            f"{trained.place} has none of the recipe's tasks, {_listed(recipe.tasks)}; it has {_listed(trained.tasks)}"
        )
    notices = []
    if unknown := [name for name in recipe.tasks if name not in trained.tasks]:
        notices.append(f"Passed over, since the checkpoint does not have them: {_listed(unknown)}")
    if without := [name for name in trained.tasks if name not in recipe.tasks]:
        notices.append(f"Passed over, since the recipe names no examples of them: {_listed(without)}")
    return names, notices


def _parts_of(trained: Trained, recipe: Recipe, name: str, splits: Sequence[str]) -> tuple[list[Part], list[str]]:
    """The splits of a task that have examples, and what to tell of the others."""
    task, notices = trained.task(name), []
    manifest = manifests.read(recipe.tasks[name].manifest)
    for what, modality in ((f"the recipe's {name}", recipe.tasks[name].modality), (manifest.uri, manifest.modality)):
        if modality != task.modality:
            raise RecipeError(f"{what} is of modality {modality}, the checkpoint's {name} is of {task.modality}")
    if manifest.multi_label != task.multi_label:
        kinds = {True: "several labels", False: "one label"}
        raise RecipeError(
            f"{manifest.uri} has {kinds[manifest.multi_label]} an example, the checkpoint's {name} has "
            f"{kinds[task.multi_label]}"
        )
    geometry = trained.architecture.modalities[task.modality]
    if recipe.geometries()[task.modality] != geometry:
        raise RecipeError(
            f"modalities.{task.modality}: the checkpoint was trained with {geometry}, the recipe says "
            f"{recipe.geometries()[task.modality]}; the checkpoint's own would be right"
        )
    missing = missing_media(manifest)
    if missing:
        raise ManifestError(f"{manifest.uri} names media that are not there, {missing} the first")
    model_class = _numbered(manifest, task)
    same = trained.state.get("manifests", {}).get(name) == manifest.digest
    if not same:
        notices.append(f"{name}: {manifest.uri} is not the manifest that it was trained by")
    parts = []
    for split in splits:
        examples = examples_of(manifest)[split]
        if not len(examples):
            notices.append(f"{name}: {manifest.uri} has no {split} examples")
            continue
        views = recipe.eval.views_of(task.modality)
        in_training = _in_training(trained, name, split, views) if same else None
        parts.append(Part(split, task, manifest, examples, geometry, views, model_class, in_training))
    return parts, notices


def _numbered(manifest: Manifest, task: TrainedTask) -> tuple[int, ...]:
    """The model's number of each class of a manifest, which may have fewer, in any order. Raises RecipeError."""
    numbers = {name: number for number, name in enumerate(task.classes)}
    unknown = [name for name in manifest.classes if name not in numbers]
    if unknown:
        raise RecipeError(
            f"{manifest.uri} has {len(unknown)} classes that the checkpoint's {task.name} does not know, the first "
            f"{unknown[0]!r}; it knows {_listed(task.classes)}"
        )
    return tuple(numbers[name] for name in manifest.classes)


def _in_training(trained: Trained, task: str, split: str, views: tuple[int, int]) -> float | None:
    """The metric that stands in the checkpoint, if it is of these weights and views."""
    state = trained.state
    results = state.get("results", {})
    progress = state.get("progress", {})
    if not results and progress.get("best", {}).get("step") == state["step"]:
        results = {"val": progress.get("validation", {})}
    trained_views = trained.recipe.eval.views_of(trained.tasks[task].modality) if split == "test" else (1, 1)
    of_task = results.get(split, {}).get(task, {})
    if tuple(views) != tuple(trained_views):
        return None
    return of_task.get("mAP", of_task.get("top1"))


def _listed(names: Sequence[str], most: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
