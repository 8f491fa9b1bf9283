"""How a model does on each class of a task: one row a class, as CSV (MLflow shows it as a table)."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from polytrain.training.metrics import confusion_matrix, mean_average_precision

SAID_FROM = 0.5
"""Probability from which a class counts as said where an example may have several."""


@dataclass(frozen=True)
class ClassRow:
    """One class. Percentages are None where they have no meaning: recall of a class without examples, say."""

    name: str
    examples: int  # that have it
    said: int  # how often the model says it
    recall: float | None  # percent of its examples that are found: its accuracy
    precision: float | None  # percent of what is said that is right
    f1: float | None  # percent
    average_precision: float | None  # percent; None where an example has one label
    taken_for: str = ""  # what its examples are most often taken for instead
    taken_for_percent: float | None = None  # of its examples

    @property
    def score(self) -> float | None:
        """What it is ranked by: F1, or average precision where examples have several labels."""
        return self.f1 if self.average_precision is None else self.average_precision


def per_class(probabilities: Tensor, targets: Tensor, classes: Sequence[str], *, multi_label: bool) -> list[ClassRow]:
    """Rows in the order of `classes`, from [N, classes] each; targets are zeros and ones.

    One label an example: the class of the highest probability is said. Several: every one from `SAID_FROM` on.
    """
    truth = targets > 0
    if multi_label:
        said, confused = probabilities >= SAID_FROM, None
    else:
        confused = confusion_matrix(probabilities, targets.argmax(1))
        said = torch.zeros_like(truth).scatter_(1, probabilities.argmax(1, keepdim=True), True)
    rows = []
    for number, name in enumerate(classes):
        has, names = int(truth[:, number].sum()), int(said[:, number].sum())
        hits = int((truth[:, number] & said[:, number]).sum())
        # A class that is neither there nor said has no F1; one that is there and never said has 0.
        f1 = _percent(2 * hits, has + names)
        average, taken_for, share = None, "", None
        if confused is None:
            if has:
                average = mean_average_precision(probabilities[:, [number]], targets[:, [number]])
        else:
            others = confused[number].clone()
            others[number] = 0
            if others.any():
                most = int(others.argmax())
                taken_for, share = classes[most], _percent(int(others[most]), has)
        rows.append(
            ClassRow(name, has, names, _percent(hits, has), _percent(hits, names), f1, average, taken_for, share)
        )
    return rows


def balanced_accuracy(rows: Sequence[ClassRow]) -> float:
    """Mean recall over the classes that have examples, percent: rare classes count as much as common ones."""
    recalls = [row.recall for row in rows if row.examples]
    return sum(recalls) / len(recalls) if recalls else math.nan


def weakest(rows: Sequence[ClassRow], count: int) -> list[ClassRow]:
    """The `count` classes with the lowest score, of those that have examples and are not perfect; lowest first."""
    judged = [row for row in rows if row.examples and row.score < 100]
    return sorted(judged, key=lambda row: row.score)[:count]


def write_csv(rows: Sequence[ClassRow], file: Path) -> Path:
    """A line a class; percentages with two digits, empty where there is none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow("class" if field.name == "name" else field.name for field in fields(ClassRow))
        writer.writerows([_cell(value) for value in astuple(row)] for row in rows)
    return file


def _cell(value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return "" if value is None else str(value)


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None
