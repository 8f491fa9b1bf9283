"""From logits to ranked class names with their probabilities, of every file."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from polytrain.data.examples import Examples
from polytrain.predict.files import Asked
from polytrain.scan import Scan, Scanned
from polytrain.trained import Trained, TrainedTask

AT_ONCE = 20_000
"""Files and tasks whose rows are made at once: a million files' rows need not be in memory together."""

SCHEMA = pa.schema(
    {"path": pa.string(), "task": pa.string(), "rank": pa.int32(), "class": pa.string(), "probability": pa.float32()}
)

CLIP = ("start_s", "end_s")
"""Columns beside those where clips within files were asked for: then a path alone does not tell which."""


class Best(NamedTuple):
    """The likeliest classes of a file for a task, by falling probability."""

    path: str
    clip: tuple[float | None, float | None]
    task: TrainedTask
    classes: np.ndarray  # [k] class numbers
    probabilities: np.ndarray  # [k]


class Ranking:
    """What was predicted so far: of each file and task the `top` likeliest classes.

    Two small arrays a task; the rows of the answer are made from them in the order in which files were asked for.
    """

    def __init__(self, trained: Trained, asked: Asked, top: int) -> None:
        self.trained, self.asked = trained, asked
        self.bad: list[tuple[str, str]] = list(asked.bad)  # path, reason
        self.seen = [np.zeros(len(group.examples), bool) for group in asked.groups]
        self._best = [
            {name: self._empty(len(group.examples), trained.task(name), top) for name in group.tasks}
            for group in asked.groups
        ]

    @staticmethod
    def _empty(files: int, task: TrainedTask, top: int) -> tuple[np.ndarray, np.ndarray]:
        shape = files, min(top, len(task.classes))
        return np.zeros(shape, np.int32), np.zeros(shape, np.float32)

    def scans(self) -> list[Scan]:
        """What a model has to see: every file as the run's final test would show it."""
        limit = self.trained.recipe.data.decode_time_limit_s
        return [
            Scan(
                key=str(number),
                modality=group.modality,
                geometry=self.trained.architecture.modalities[group.modality],
                examples=group.examples,
                views=self.trained.views_of(group.modality),
                tasks=group.tasks,
                decode_time_limit_s=limit,
            )
            for number, group in enumerate(self.asked.groups)
        ]

    def take(self, scanned: Iterable[Scanned]) -> Ranking:
        """Put in what a model said."""
        for some in scanned:
            number = int(some.key)
            self.bad += [(path, reason) for _, path, reason in some.bad]
            self.seen[number][some.ids] = True
            for name, logits in some.outputs.items():
                classes, probabilities = self._best[number][name]
                of_all = self.trained.task(name).probabilities(logits)
                best = np.argsort(-of_all, axis=1, kind="stable")[:, : classes.shape[1]]
                classes[some.ids] = best
                probabilities[some.ids] = np.take_along_axis(of_all, best, axis=1)
        return self

    @property
    def predicted(self) -> int:
        """Files that could be read."""
        return sum(int(seen.sum()) for seen in self.seen)

    def best(self) -> Iterator[Best]:
        """Of every file that could be read, in the order they were asked for, each task's classes."""
        for number, example in self._order():
            examples = self.asked.groups[number].examples
            path, clip = examples.name(example), examples.clip(example)
            for task, (classes, probabilities) in self._best[number].items():
                yield Best(path, clip, self.trained.task(task), classes[example], probabilities[example])

    def _order(self) -> Iterator[tuple[int, int]]:
        """(group, example) of the files that could be read, in the order they were asked for."""
        group = np.concatenate([np.full(len(s), number) for number, s in enumerate(self.seen)] or [np.empty(0, int)])
        example = np.concatenate([np.arange(len(s)) for s in self.seen] or [np.empty(0, int)])
        position = np.concatenate([np.array(group.positions, int) for group in self.asked.groups] or [np.empty(0, int)])
        seen = np.concatenate(self.seen or [np.empty(0, bool)])
        order = np.argsort(position)
        order = order[seen[order]]
        return zip(group[order].tolist(), example[order].tolist(), strict=True)

    @functools.cached_property
    def _clips(self) -> bool:
        """Whether clips within files were asked for."""
        tables = [group.examples.table for group in self.asked.groups if isinstance(group.examples, Examples)]
        return any(name in table.column_names for table in tables for name in CLIP)

    @property
    def schema(self) -> pa.Schema:
        """The answer's columns, and in its metadata which model spoke."""
        digest = self.trained.state["sha256"]["model.safetensors"]
        about = {"checkpoint": self.trained.place, "model_sha256": digest}
        if self.trained.state.get("license"):
            about["license"] = self.trained.state["license"]
        columns = [*SCHEMA, *(pa.field(name, pa.float64()) for name in CLIP if self._clips)]
        return pa.schema(columns).with_metadata({"polytrain.predictions": json.dumps(about)})

    def tables(self) -> Iterator[pa.Table]:
        """The answer, some files at a time: a row a file, task and rank (1: the likeliest class)."""
        schema = self.schema
        rows: dict[str, list] = {name: [] for name in schema.names}
        for count, best in enumerate(self.best(), 1):
            k = len(best.classes)
            columns = [
                [best.path] * k,
                [best.task.name] * k,
                range(1, k + 1),
                [best.task.classes[index] for index in best.classes],
                best.probabilities.tolist(),
                *([time] * k for time in best.clip if self._clips),
            ]
            for name, values in zip(schema.names, columns, strict=True):
                rows[name] += values
            if count % AT_ONCE == 0:
                yield pa.table(rows, schema=schema)
                rows = {name: [] for name in schema.names}
        yield pa.table(rows, schema=schema)
