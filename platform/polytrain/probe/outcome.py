"""What a probe found: every head's validation, the winners' tests, and what computing features once has saved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polytrain.probe.features import Features
from polytrain.probe.opening import ProbedTask, Probing
from polytrain.report import duration, table
from polytrain.sweep.outcome import FINISHED, Row, by_task, ranked


@dataclass(frozen=True)
class Tested:
    """What the winner of a task does on the test split."""

    metrics: Mapping[str, float]
    """top1, top5 or mAP in percent, loss, examples; empty without a test split."""
    bad: int = 0


def best_rows(rows: Sequence[Row]) -> dict[str, Row]:
    """Each task's winner by validation; a head that is alone needs none."""
    found = {}
    for task, of_task in by_task(rows).items():
        best = ranked(of_task)[0]
        if best.ended.status == FINISHED and (best.ended.score is not None or len(of_task) == 1):
            found[task] = best
    return found


def results_text(probing: Probing, rows: Sequence[Row], tested: Mapping[str, Tested]) -> str:
    """One line a head, the best of its task first; the test is the best one's."""
    best = best_rows(rows)
    lines = []
    for task, of_task in by_task(rows).items():
        planned = next(one for one in probing.tasks if one.name == task)
        for row in ranked(of_task):
            won = row is best.get(task)
            test = tested[task] if won and task in tested else None
            lines.append(
                [
                    task, planned.task.modality, len(planned.task.classes), row.point.label, row.point.metric,
                    row.ended.shown if row.ended.score is not None or row.ended.status != FINISHED else "-",
                    "best" if won else "", _percent(test, row.point.metric), _percent(test, "top5"),
                    test.metrics.get("examples", "-") if test else "-", test.bad or "-" if test else "-",
                ]
            )  # fmt: skip
    header = ["task", "modality", "classes", "values", "metric", "val", "", "test", "test top5", "test n", "bad media"]
    return table(header, lines)


def _percent(test: Tested | None, name: str) -> str:
    return f"{test.metrics[name]:.1f}" if test and name in test.metrics else "-"


# --- what was saved ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Saving:
    """Passes through the model for a task's heads: once an example, and as the ordinary loop would."""

    task: str
    heads: int
    examples: int
    """Of training and validation; the winner's test costs the same either way."""
    earlier: int
    """Of these, computed by an earlier probe."""
    seconds: float
    """What computing them took, whenever it was."""
    in_loop: int
    """Examples that the loop would pass through the model for all heads."""

    @property
    def times(self) -> float:
        return self.in_loop / max(self.examples, 1)

    @property
    def loop_seconds(self) -> float:
        """What the loop's passes would take at the same rate."""
        return self.seconds * self.times


def saving_of(probing: Probing, task: ProbedTask, train: Features, val: Features, earlier: int) -> Saving:
    plans = [probing.experiment(point).plan for point in task.points]
    taken = [len(plan.schedule.draws) * plan.tasks[0].batch_size for plan in plans]
    in_loop = sum(taken) + sum(len(plan.eval_steps) * plan.tasks[0].sizes["val"] for plan in plans)
    examples = min(max(taken), train.size) + val.size
    known = len(train) + len(val)  # those that another probe alone needs among them
    seconds = (train.seconds + val.seconds) * examples / max(known, 1)
    return Saving(task.name, len(task.points), examples, earlier, seconds, in_loop)


def savings_text(savings: Sequence[Saving]) -> str:
    """A line a task, and a sentence about all."""
    rows: list[list[Any]] = [
        [
            one.task, one.heads, f"{one.examples:,}", _time(one.seconds), f"{one.earlier:,}", f"{one.in_loop:,}",
            _time(one.loop_seconds), f"{one.times:.1f}",
        ]
        for one in savings
    ]  # fmt: skip
    header = ["task", "heads", "examples", "features took", "of earlier probes", "in the loop", "would take", "times"]
    once, loop = (sum(getattr(one, name) for one in savings) for name in ("examples", "in_loop"))
    seconds, would = (math.fsum(getattr(one, name) for one in savings) for name in ("seconds", "loop_seconds"))
    return (
        f"{table(header, rows)}\n"
        f"{once:,} examples went through the model once; the ordinary loop would pass {loop:,} through it for "
        f"{sum(one.heads for one in savings)} heads: about {_time(would)} instead of {_time(seconds)}."
    )


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)
