"""Winners of sweeps into a recipe that co-trains: `hparams=latest`, an MLflow run id, or a best_hparams.yaml.

What is taken stands in the recipe from then on, values and run ids: a recipe saved with a run never says `latest`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from polytrain.data import manifest as manifests
from polytrain.data.manifest import ManifestError
from polytrain.recipe import Recipe, RecipeError, check
from polytrain.sweep.points import conditions, label, path_of
from polytrain.tracking import AwayError, Finder, chosen_uri

LATEST = "latest"
BEST = "best_hparams.yaml"
RUN_ID = re.compile(r"[0-9a-f]{32}")
MOST_SWEEPS = 100
"""How many sweeps `latest` looks through, newest first."""


@dataclass(frozen=True)
class Winner:
    """A task's winner as best_hparams.yaml has it."""

    values: dict[str, Any]
    metric: str
    score: float
    run_id: str
    found_under: dict[str, Any]
    sweep_run_id: str
    recipe: str  # the sweep's


def with_hparams(recipe: Recipe, say: Callable[[str], None] = print) -> Recipe:
    """The recipe with the winners that its `hparams` names; as it is where that names none, or they were taken before.

    Says which were taken and from where. Raises RecipeError for tasks without a winner and for winners found under
    other conditions, unless the recipe allows them.
    """
    wanted = recipe.hparams
    if not isinstance(wanted, str):
        return recipe
    found, where = _winners(recipe, wanted)
    _refuse_missing(recipe, found, where)
    taken = {name: found[name] for name in recipe.tasks if name in found}
    _refuse_mismatch(recipe, taken, where)
    tree = recipe.plain()
    for name, winner in taken.items():
        for key, value in winner.values.items():
            path = path_of(name, key)
            if _belongs_to(name, path):
                _put(tree, path, value)
    for path, value in _shared(recipe, taken).items():
        _put(tree, path, value)
    tree["hparams"] = {
        "tasks": {
            name: {"values": w.values, "run_id": w.run_id, "sweep_run_id": w.sweep_run_id} for name, w in taken.items()
        }
    }
    for name in recipe.tasks:
        if name in taken:
            w = taken[name]
            say(f"{name}: {label(w.values)} ({w.score:.1f} {w.metric} in run {w.run_id} of sweep {w.sweep_run_id})")
        else:
            say(f"{name}: no winner, the recipe's lr={recipe.tasks[name].lr:g} stays")
    return check(tree, source="hparams")


# --- where winners are ------------------------------------------------------------------------------------------------


def _winners(recipe: Recipe, wanted: str) -> tuple[dict[str, Winner], str]:
    """Winners by task, and words for where they are from."""
    if wanted == LATEST:
        return _latest(recipe)
    if RUN_ID.fullmatch(wanted):
        return _of_run(recipe, wanted), f"sweep {wanted}"
    file = Path(wanted).expanduser()
    try:
        return _parsed(file.read_text(), str(file)), str(file)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"hparams: {wanted} can't be read ({error}); latest, the run id of a sweep or a {BEST} would be right"
        ) from None


def _of_run(recipe: Recipe, run_id: str) -> dict[str, Winner]:
    uri = chosen_uri(recipe.tracking.uri, recipe.output)
    finder = Finder(uri)
    try:
        run = finder.run(run_id)
        if run is None:
            raise RecipeError(f"hparams: {uri} has no run {run_id}")
        kind = run.tags.get("polytrain.kind", "run of something else")
        if kind != "sweep":
            raise RecipeError(f"hparams: run {run_id} is a {kind}, no sweep")
        text = finder.text(run_id, BEST)
    except AwayError as error:
        raise RecipeError(
            f"hparams: the winners of run {run_id} can't be read from {uri} ({error}); did the sweep finish?"
        ) from None
    return _parsed(text, f"run {run_id}")


def _latest(recipe: Recipe) -> tuple[dict[str, Winner], str]:
    """Each task's winner of the newest sweep that has one: sweeps of the recipe's experiment, else of any."""
    uri = chosen_uri(recipe.tracking.uri, recipe.output)
    finder = Finder(uri)
    found: dict[str, Winner] = {}
    try:
        for experiment in (recipe.tracking.experiment or recipe.name, None):
            for number, run in enumerate(finder.runs({"polytrain.kind": "sweep"}, experiment=experiment)):
                missing = set(recipe.tasks) - set(found)
                if not missing or number == MOST_SWEEPS:
                    break
                if not missing & set(run.tags.get("polytrain.tasks", "").split()):
                    continue
                with contextlib.suppress(AwayError, RecipeError):  # a sweep that never ended has no winners
                    for name, winner in _parsed(finder.text(run.run_id, BEST), f"run {run.run_id}").items():
                        found.setdefault(name, winner)
    except AwayError as error:
        raise RecipeError(
            f"hparams: MLflow at {uri} does not answer ({error}); a {BEST} can be named instead"
        ) from None
    if not set(found) & set(recipe.tasks):
        raise RecipeError(f"hparams: no sweep in {uri} has a winner for these tasks; jobs/sweep.py makes one")
    return found, f"the latest sweeps in {uri}"


def _parsed(text: str, source: str) -> dict[str, Winner]:
    try:
        tree = yaml.safe_load(text)
        sweep = tree["sweep"]
        return {
            name: Winner(
                values=dict(entry["values"]),
                metric=str(entry["metric"]),
                score=float(entry["score"]),
                run_id=str(entry["run_id"]),
                found_under=dict(entry["found_under"]),
                sweep_run_id=str(sweep["run_id"]),
                recipe=str(sweep["recipe"]),
            )
            for name, entry in tree["tasks"].items()
        }
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RecipeError(f"hparams: {source} is no {BEST} as jobs/sweep.py writes it ({what})") from None


# --- whether they fit -------------------------------------------------------------------------------------------------


def _refuse_missing(recipe: Recipe, found: Mapping[str, Winner], where: str) -> None:
    missing = [name for name in recipe.tasks if name not in found]
    if len(missing) == len(recipe.tasks) and found:
        other = next(iter(found.values())).recipe
        raise RecipeError(f"hparams: {where} is of recipe {other} and has none of the tasks {', '.join(missing)}")
    if missing and recipe.hparams_missing != "allow":
        raise RecipeError(
            f"hparams: {where} has no winner for {', '.join(missing)}; sweep them, or let them keep the recipe's "
            f"values with hparams_missing=allow"
        )


def _refuse_mismatch(recipe: Recipe, taken: Mapping[str, Winner], where: str) -> None:
    if recipe.hparams_mismatch == "allow":
        return
    faults = [fault for name, winner in taken.items() for fault in _mismatches(recipe, name, winner)]
    if not faults:
        return
    told = list(dict.fromkeys(faults))
    more = f"\n  and {len(told) - 12} more" if len(told) > 12 else ""
    raise RecipeError(
        f"hparams: winners of {where} were found under other conditions:\n  "
        + "\n  ".join(told[:12])
        + more
        + "\nSweep again, or take them all the same with hparams_mismatch=allow"
    )


def _mismatches(recipe: Recipe, name: str, winner: Winner) -> Iterator[str]:
    """What differs between the trial and the recipe, but for what was searched."""
    try:
        digest = manifests.read(recipe.tasks[name].manifest).digest
    except ManifestError as error:
        raise RecipeError(f"tasks.{name}.manifest: {error}") from None
    now = conditions(recipe, name, digest)
    searched = {path_of(name, key) for key in winner.values}
    for path, then in winner.found_under.items():
        if path in searched or (path not in now and not path.startswith("modalities.")):
            continue
        here = now.get(path)
        here = list(here) if isinstance(here, tuple) else here
        if here != then:
            is_manifest = path.endswith(".manifest")
            yield (
                f"{path}: not the examples of the sweep"
                if is_manifest
                else f"{path}: the sweep had {then}, the recipe has {here}"
            )


def _belongs_to(name: str, path: str) -> bool:
    return path.startswith(f"tasks.{name}.")


def _shared(recipe: Recipe, taken: Mapping[str, Winner]) -> dict[str, Any]:
    """Winning values of keys that all tasks share, such as optimizer.weight_decay: the winners must agree."""
    values: dict[str, dict[str, Any]] = {}
    for name, winner in taken.items():
        for key, value in winner.values.items():
            if not path_of(name, key).startswith("tasks."):
                values.setdefault(key, {})[name] = value
    agreed = {}
    for key, by_name in values.items():
        if all(value == next(iter(by_name.values())) for value in by_name.values()):
            agreed[key] = next(iter(by_name.values()))
        elif recipe.hparams_mismatch != "allow":
            told = ", ".join(f"{name} {value}" for name, value in by_name.items())
            raise RecipeError(
                f"hparams: {key} is one for all tasks, and their winners differ ({told}); hparams_mismatch=allow keeps "
                f"the recipe's"
            )
    return agreed


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        tree = tree[parent]
    tree[last] = value
