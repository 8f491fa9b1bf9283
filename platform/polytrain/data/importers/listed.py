"""Rows of annotation files, and what the rows before them said: an example that stands twice, splits that overlap."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from polytrain.data.importers.collection import Example, IngestError


@dataclass(slots=True)
class Annotation:
    """One line of an annotation file.

    `paths` are the places where the file may lie, relative to the root and without suffix, likeliest first. `name`
    is what may stand only once (unless given: the first path). `recording` is what train may not share with val or
    test: a video's id where clips are cut from videos (unless given: the name). `splits` are two where a dataset's
    validation set stands for its test set as well. `unit` is what `line` counts.
    """

    paths: tuple[str, ...]
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    table: str
    line: int = 0
    name: str = ""
    recording: str = ""
    start_s: float | None = None
    end_s: float | None = None
    unit: str = "line"

    @property
    def where(self) -> str:
        return _where(self.table, self.line, self.unit)

    @property
    def shared(self) -> str:
        """What train may not share with val or test."""
        return self.recording or self.name or self.paths[0]


def _where(table: str, line: int, unit: str) -> str:
    return f"{table}, {unit} {line}" if line else table


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overlap", choices=("fail", "skip", "ignore"), default="fail",
                        help="what the dataset's lists name in train and in val or test, or clips of one recording in "
                        "both: refuse (fail), leave out of train (skip), or do not look (ignore)")  # fmt: skip
    parser.add_argument("--duplicates", choices=("fail", "skip"), default="fail",
                        help="a row of the lists that names an example again: refuse (fail), or leave it out "
                        "(skip)")  # fmt: skip


class Listed:
    """Which names and recordings stood where, with one integer for each: there are millions.

    `overlap` and `duplicates` are what the flags say.
    """

    def __init__(self, overlap: str, duplicates: str) -> None:
        self.overlap, self.duplicates = overlap, duplicates
        self.rows = 0
        self._tables: dict[tuple[str, str], int] = {}
        self._names: dict[bool, dict[str, int]] = {True: {}, False: {}}
        self._recordings: dict[bool, dict[str, int]] = {True: {}, False: {}}
        self._overlapping: set[str] = set()
        self._repeated: list[str] = []

    def add(self, a: Annotation) -> bool:
        """Whether the row counts. Raises IngestError for a duplicate or an overlap that is to be refused."""
        self.rows += 1
        name, trains = a.name or a.paths[0], "train" in a.splits
        place = self._tables.setdefault((a.table, a.unit), len(self._tables)) << 32 | a.line
        first = self._names[trains].setdefault(name, place)
        if first != place:
            if self.duplicates == "fail":
                raise IngestError(
                    f"{a.where}: {name!r} stands in {self._named(first)} already; an example has one row: take one "
                    f"out, or --duplicates skip leaves the second out"
                )
            self._repeated.append(a.where)
            return False
        by = self._names
        if a.shared != name:
            by = self._recordings
            by[trains].setdefault(a.shared, place)
        other = by[not trains].get(a.shared)
        if other is None or self.overlap == "ignore":
            return True
        if self.overlap == "fail":
            here, there = ("train", "val or test") if trains else ("/".join(a.splits), "train")
            raise IngestError(
                f"{a.where}: {a.shared!r} is in {here}, and {self._named(other)} has it in {there}; the splits "
                f"overlap, and a test on what was trained on says nothing: take one of the two out, or --overlap skip "
                f"leaves it out of train"
            )
        self._overlapping.add(a.shared)
        return True

    def without_overlap(self, examples: Sequence[Example], shared: Sequence[str]) -> list[Example]:
        """The examples, of which each has `shared`, without the training ones that val or test has too."""
        return [
            example
            for example, key in zip(examples, shared, strict=True)
            if example.split != "train" or key not in self._overlapping
        ]

    def notes(self, left_out: int) -> list[str]:
        """What was left out, for the person who asked; `left_out` are the training examples that overlapped."""
        notes = []
        if self._repeated:
            count, which = len(self._repeated), self._repeated[0]
            notes.append(f"left {count:,} rows out that name an example again: --duplicates skip; the first: {which}")
        if left_out:
            notes.append(f"left {left_out:,} training examples out that are in val or test as well: --overlap skip")
        return notes

    def _named(self, place: int) -> str:
        table, unit = list(self._tables)[place >> 32]
        return _where(table, place & 0xFFFFFFFF, unit)
