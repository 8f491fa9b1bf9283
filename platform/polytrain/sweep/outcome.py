"""What a sweep found: how its trials ended, the table, the winners, and `best_hparams.yaml`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from polytrain.report import duration, table
from polytrain.sweep.points import Point, Space, conditions

FINISHED, DIVERGED, CRASHED, INTERRUPTED = "finished", "failed-diverged", "failed", "stopped"


@dataclass(frozen=True)
class Ended:
    """How a trial ended."""

    status: str
    score: float | None  # percent, of the last validation; None unless finished
    run_id: str
    seconds: float = math.nan  # of its steps and validations
    start_up_s: float = math.nan  # beyond them
    message: str = ""

    @classmethod
    def of_result(cls, result: Mapping[str, Any], point: Point, run_id: str) -> Ended:
        """From a run folder's result.json. A loss that is not finite at the end is a divergence, too."""
        times = {"seconds": result.get("seconds", math.nan), "start_up_s": result.get("start_up_s", math.nan)}
        if result["status"] == "stopped":
            return cls(INTERRUPTED, None, run_id, **times)
        if result["status"] == "failed":
            return cls(
                DIVERGED if result.get("diverged") else CRASHED, None, run_id, message=result["message"], **times
            )
        values = result["val"].get(point.task, {})
        score = values.get(point.metric)
        if not all(map(math.isfinite, (values.get("loss", math.nan), score if score is not None else math.nan))):
            message = "the loss on the validation split is not finite" if values else "there is no validation split"
            return cls(DIVERGED if values else CRASHED, None, run_id, message=message, **times)
        return cls(FINISHED, score, run_id, **times)

    @property
    def shown(self) -> str:
        return f"{self.score:.1f}" if self.score is not None else {DIVERGED: "diverged"}.get(self.status, self.status)


@dataclass(frozen=True)
class Row:
    """A point of the sweep and how it ended."""

    point: Point
    ended: Ended
    known: bool = False  # from before this sweep


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Best first: by validation, ties to the smaller values (the smaller rate); what has no score comes last."""

    def key(row: Row) -> tuple:
        values = row.point.values
        size = [
            values[k] if isinstance(values[k], (int, float)) else 0 for k in sorted(values, key=lambda k: k != "lr")
        ]
        score = row.ended.score
        return (score is None, -(score or 0.0), size, row.point.label)

    return sorted(rows, key=key)


def winners(rows: Sequence[Row]) -> dict[str, Row]:
    """The best finished trial of each task that has one."""
    return {task: best for task in by_task(rows) if (best := ranked(by_task(rows)[task])[0]).ended.score is not None}


def by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.point.task, []).append(row)
    return found


# --- as text and files ------------------------------------------------------------------------------------------------


def outcome_text(rows: Sequence[Row]) -> str:
    """One line a trial, best first within its task."""
    best = {id(row) for row in winners(rows).values()}
    lines = [
        [
            row.point.task, row.point.label, row.point.metric, row.ended.shown, "winner" if id(row) in best else "",
            _seconds(row.ended.seconds), _seconds(row.ended.start_up_s), "before" if row.known else "now",
            row.ended.run_id,
        ]
        for of_task in by_task(rows).values()
        for row in ranked(of_task)
    ]  # fmt: skip
    return table(["task", "values", "metric", "val", "", "steps", "start-up", "ran", "MLflow run"], lines)


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if math.isfinite(seconds) else "-"


def write_tables(rows: Sequence[Row], folder: Path) -> tuple[Path, Path]:
    """table.md and table.parquet: every trial with its values, score, times and run."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    best = {id(row) for row in winners(rows).values()}
    ordered = [row for of_task in by_task(rows).values() for row in ranked(of_task)]
    keys = list(dict.fromkeys(key for row in ordered for key in row.point.values))
    header = ["task", *keys, "metric", "val", "status", "winner", "steps (s)", "start-up (s)", "MLflow run"]
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for row in ordered:
        cells = [row.point.task, *(row.point.values.get(key, "") for key in keys), row.point.metric]
        cells += ["" if row.ended.score is None else f"{row.ended.score:.2f}", row.ended.status]
        cells += ["**winner**" if id(row) in best else "", _seconds(row.ended.seconds), _seconds(row.ended.start_up_s)]
        lines.append("| " + " | ".join(map(str, [*cells, row.ended.run_id])) + " |")
    markdown, parquet = folder / "table.md", folder / "table.parquet"
    markdown.write_text("\n".join(lines) + "\n")
    records = [
        {"task": row.point.task}
        | {key: row.point.values.get(key) for key in keys}
        | {"metric": row.point.metric, "winner": id(row) in best, "fingerprint": row.point.fingerprint}
        | {"ran_before": row.known}
        | asdict(row.ended)
        for row in ordered
    ]
    pq.write_table(pa.Table.from_pylist(records), parquet)
    return markdown, parquet


def write_best(space: Space, rows: Sequence[Row], sweep: Mapping[str, str], file: Path) -> Path:
    """best_hparams.yaml: for each task the winner, its score, the losers' scores, runs, and what they were found under.

    `sweep` says where the sweep is recorded: run_id, tracking_uri.
    """
    tasks: dict[str, Any] = {}
    won = winners(rows)
    for task, of_task in by_task(rows).items():
        if task not in won:
            continue
        best = won[task]
        planned = next(t for t in space.experiment.tasks if t.name == task)
        tasks[task] = {
            "values": best.point.values,
            "metric": best.point.metric,
            "score": best.ended.score,
            "run_id": best.ended.run_id,
            "recipe_digest": best.point.recipe.digest,
            "losers": [
                {"values": row.point.values, "score": row.ended.score, "status": row.ended.status,
                 "run_id": row.ended.run_id}
                for row in ranked(of_task)[1:]
            ],
            "found_under": conditions(best.point.recipe, task, planned.digest),
        }  # fmt: skip
    recipe = {"recipe": space.recipe.name, "recipe_digest": space.recipe.digest}
    file.write_text(yaml.safe_dump({"sweep": dict(sweep) | recipe, "tasks": tasks}, sort_keys=False, width=120))
    return file


def time_text(rows: Sequence[Row], wall_s: float, cores: str) -> str:
    """How long it took, against the same steps one after the other."""
    now = [row for row in rows if not row.known]
    ran = [row for row in now if math.isfinite(row.ended.seconds)]
    if not now:
        return f"All {len(rows)} trials were done before; nothing ran ({duration(wall_s)})."
    alone = sum(row.ended.seconds for row in ran)
    before = f", {len(rows) - len(now)} were done before" if len(rows) > len(now) else ""
    return (
        f"{len(now)} trials ran in {duration(wall_s)}{before}; their steps one after the other, each on {cores} as "
        f"here, take {duration(alone)}: {alone / max(wall_s, 1e-9):.2g} times as long."
    )
