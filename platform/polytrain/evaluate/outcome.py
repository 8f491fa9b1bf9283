"""What an evaluation finds of one split of a task: numbers, files and pictures; and the tables over all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from polytrain import figures
from polytrain.evaluate.calibration import calibration_of, reliability_diagram
from polytrain.evaluate.mistakes import mistakes, mistakes_sheet
from polytrain.evaluate.parts import Part
from polytrain.evaluate.per_class import ClassRow, balanced_accuracy, per_class, weakest, write_csv
from polytrain.report import duration, table
from polytrain.training.evaluation import Predictions
from polytrain.training.metrics import confusion_matrix

WEAKEST = 8
"""Classes that the terminal names; per_class/ has all."""


@dataclass(frozen=True)
class Outcome:
    """The numbers of one split of one task, percentages among them, as result.json keeps them."""

    task: str
    split: str
    modality: str
    metric: str
    metrics: dict[str, float]
    """By MLflow's short names: top1, top5, balanced_accuracy or mAP; ece, loss, examples."""
    views: int  # of an example
    in_training: float | None
    bad: int  # media that can't be decoded; they are left out
    mistakes: int
    weakest: list[dict[str, Any]] = field(default_factory=list)

    @property
    def score(self) -> float:
        return self.metrics.get(self.metric, math.nan)


def judge(part: Part, predictions: Predictions, bad: Sequence[tuple[int, str, str]], folder: Path) -> Outcome:
    """Every number, file and picture of a split, written below `folder`: predictions/, per_class/, calibration/,
    confusion/ and mistakes/, each with part.file_name."""
    task = part.task
    metrics = predictions.metrics(loss=task.loss, multi_label=task.multi_label)
    outcome = {"task": task.name, "split": part.split, "modality": task.modality, "metric": task.metric,
               "views": len(part.views), "in_training": part.in_training, "bad": len(bad)}  # fmt: skip
    if not metrics:
        return Outcome(**outcome, metrics={"examples": 0}, mistakes=0)
    # In double precision: float32 says 1 where it means 1 - 1e-9, and the surest mistake is lost among ties.
    logits = predictions.logits.double()
    probabilities = logits.softmax(1) if task.loss == "softmax" else logits.sigmoid()
    title = f"{task.name}, {part.split}"

    def place(kind: str, ending: str) -> Path:
        file = folder / kind / f"{part.file_name}.{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    names = [part.examples.name(example) for example in predictions.ids.tolist()]
    said = predictions.table(names, task.classes, loss=task.loss, multi_label=task.multi_label)
    pq.write_table(said, place("predictions", "parquet"), compression="zstd")

    rows = per_class(probabilities, predictions.targets, task.classes, multi_label=task.multi_label)
    write_csv(rows, place("per_class", "csv"))
    if not task.multi_label:
        metrics["balanced_accuracy"] = balanced_accuracy(rows)
        matrix = confusion_matrix(predictions.logits, predictions.targets.argmax(1))
        figures.confusion(matrix.numpy(), list(task.classes), place("confusion", "png"))

    calibrated = calibration_of(probabilities, predictions.targets, multi_label=task.multi_label)
    metrics["ece"] = calibrated.error
    reliability_diagram(calibrated, place("calibration", "png"), title=title, multi_label=task.multi_label)

    wrong = mistakes(predictions.ids, probabilities, predictions.targets, multi_label=task.multi_label)
    if wrong:
        mistakes_sheet(part.manifest, part.split, part.geometry, wrong, title=title, classes=task.classes,
                       examples=len(names), file=place("mistakes", "png"))  # fmt: skip
    weak = [asdict(row) for row in weakest(rows, WEAKEST)]
    return Outcome(**outcome, metrics=metrics, mistakes=len(wrong), weakest=weak)


def too_bad(outcomes: Sequence[Outcome], limit: float) -> str | None:
    """What to tell of the first split with a larger part than `limit` of bad media: its numbers mean little."""
    for one in outcomes:
        total = one.bad + one.metrics["examples"]
        if one.bad > limit * total:
            return (
                f"{one.task}: {one.bad} of {total} {one.split} examples can't be decoded, over data.max_bad_fraction "
                f"{limit:g}"
            )
    return None


# --- tables -------------------------------------------------------------------------------------------------------


def results_text(outcomes: Sequence[Outcome]) -> str:
    """One line a split of a task."""
    rows = [
        [
            one.task, one.split, one.metric, _number(one.score), _number(one.in_training),
            _number(one.metrics.get("top5")), _number(one.metrics.get("balanced_accuracy")),
            _number(one.metrics.get("ece")), one.views, f"{one.metrics['examples']:,}", one.bad or "-",
        ]
        for one in outcomes
    ]  # fmt: skip
    header = ["task", "split", "metric", "percent", "in training", "top5", "balanced", "ECE", "views", "n", "bad media"]
    return table(header, rows)


def weakest_text(outcomes: Sequence[Outcome]) -> str:
    """The classes that the model is worst at, in the split asked for last: by F1, by average precision where examples
    have several labels. Empty when it makes no mistake."""
    split = outcomes[-1].split
    found = [(one, ClassRow(**row)) for one in outcomes if one.split == split for row in one.weakest]
    rows = [
        [
            one.task, row.name, row.examples, _number(row.recall), _number(row.precision), _number(row.score),
            f"{row.taken_for} ({row.taken_for_percent:.1f} %)" if row.taken_for else "",
        ]
        for one, row in sorted(found, key=lambda pair: pair[1].score)[:WEAKEST]
    ]  # fmt: skip
    header = ["task", f"weakest classes, {split}", "n", "recall", "precision", "F1 or AP", "mostly taken for"]
    return table(header, rows) if rows else ""


def throughput_text(throughput: Mapping[str, float]) -> str:
    """How much was judged, how quickly."""
    t = throughput
    return (
        f"{t['examples']:,} examples, {t['views']:,} views, in {duration(t['seconds'])}; once Ray and the model were "
        f"there ({t['start_up_s']:.0f} s), {t['examples_per_s']:,.0f} examples/s, {t['views_per_s']:,.0f} views/s"
    )


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"


def write_tables(outcomes: Sequence[Outcome], folder: Path) -> tuple[Path, Path]:
    """table.md and table.parquet: a row a split of a task, with every metric."""
    records = [
        {"task": one.task, "split": one.split, "modality": one.modality, "views": one.views}
        | {"in_training": one.in_training, "bad": one.bad, "mistakes": one.mistakes}
        | {name: float(value) for name, value in one.metrics.items()}
        for one in outcomes
    ]
    columns = list(dict.fromkeys(name for record in records for name in record))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(record.get(name)) for name in columns) + " |" for record in records]
    markdown, parquet = folder / "table.md", folder / "table.parquet"
    markdown.write_text("\n".join(lines) + "\n")
    pq.write_table(pa.table({name: [record.get(name) for record in records] for name in columns}), parquet)
    return markdown, parquet


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}" if value.is_integer() else f"{value:.2f}"
    return "" if value is None else str(value)
