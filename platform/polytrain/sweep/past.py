"""Trials that ended before: in MLflow, whoever ran them, or in this output folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from polytrain.recipe import RecipeError
from polytrain.run_folder import RunFolder
from polytrain.sweep.outcome import CRASHED, DIVERGED, FINISHED, Ended
from polytrain.sweep.points import Point, Space, TaskSpace, path_of
from polytrain.tracking import Finder, FoundRun
from polytrain.tracking.journal import Journal

KIND = "polytrain.kind"
FINGERPRINT, STATUS = "polytrain.fingerprint", "polytrain.status"
STEPS_S, START_UP_S = "trial/steps_s", "trial/start_up_s"


def in_mlflow(finder: Finder, tasks: Iterable[str]) -> dict[str, FoundRun]:
    """Trials of these tasks that count as done (finished or diverged), by fingerprint. Raises AwayError."""
    found: dict[str, FoundRun] = {}
    for task in tasks:
        for run in finder.runs({KIND: "trial", "polytrain.task": task}):
            if run.tags.get(STATUS) in (FINISHED, DIVERGED) and run.status in ("FINISHED", "FAILED"):
                found.setdefault(run.tags.get(FINGERPRINT, ""), run)
    return found


def ended_run(point: Point, run: FoundRun) -> Ended:
    """A point's end as MLflow has it."""
    score = run.metrics.get(f"val/{point.task}/{point.metric}")
    status = run.tags[STATUS]
    return Ended(
        status=status if status != FINISHED or score is not None else CRASHED,
        score=score if status == FINISHED else None,
        run_id=run.run_id,
        seconds=run.metrics.get(STEPS_S, math.nan),
        start_up_s=run.metrics.get(START_UP_S, math.nan),
        message=run.tags.get("polytrain.error", ""),
    )


def on_disk(point: Point) -> Ended | None:
    """A point's end as its run folder has it; None where it has not ended, or crashed and may be tried again."""
    result = RunFolder(point.folder).result()
    record = RunFolder(point.folder).record()
    if result.get("status") not in ("finished", "failed") or not record:
        return None
    ended = Ended.of_result(result, point, record["run_id"])
    return None if ended.status == CRASHED else ended


def observed(space: Space, of_task: TaskSpace, runs: Mapping[str, FoundRun]) -> Iterator[Point]:
    """Points within a search's ranges that ended or were begun before, by anyone, with everything else alike."""
    seen = set()
    for values, fingerprint in (*_values_in_mlflow(of_task, runs), *_values_on_disk(space, of_task)):
        inside = all(r.low <= values[key] <= r.high for key, r in of_task.ranges.items())
        if not inside or fingerprint in seen:
            continue
        try:
            point = space.point(of_task.task, values)
        except RecipeError:
            continue
        if point.fingerprint == fingerprint:
            seen.add(fingerprint)
            yield point


def _values_in_mlflow(of_task: TaskSpace, runs: Mapping[str, FoundRun]) -> Iterator[tuple[dict[str, Any], str]]:
    # Oldest first: a search that is repeated sees the trials in the order in which they were made.
    for run in sorted(runs.values(), key=lambda run: run.start_ms):
        params = {key: run.params.get(path_of(of_task.task, key)) for key in of_task.ranges}
        try:
            values = {key: json.loads(value) for key, value in params.items() if value is not None}
        except ValueError:
            continue
        if values.keys() == params.keys() and all(isinstance(value, (int, float)) for value in values.values()):
            yield values, run.tags.get(FINGERPRINT, "")


def _values_on_disk(space: Space, of_task: TaskSpace) -> Iterator[tuple[dict[str, Any], str]]:
    folder = Path(space.recipe.output) / "trials"
    for file in sorted(folder.glob(f"{of_task.task}-*/trial.json"), key=lambda file: file.stat().st_mtime):
        told = json.loads(file.read_text())
        if told["values"].keys() == of_task.ranges.keys():
            yield told["values"], told["fingerprint"]


def delivered(folder: Path) -> bool:
    """Whether MLflow has everything that the run in `folder` recorded."""
    journal = Journal(folder)
    try:
        record = RunFolder(folder).record()
        return journal.cursor.get(record["run_id"], 0) >= journal.size
    finally:
        journal.close()
