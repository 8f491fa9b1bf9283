"""What the importers share: a root with an official layout, and annotations that become a Collection.

An importer reads its dataset's annotation files into `Annotation`s; `gather` looks every one up on disk, lists what
is missing (videos vanish from the web, so that is normal) and refuses what cannot be right: a class that the class
list does not know, a name that stands twice, a recording that is in train and in val or test.

Where a paper takes "the first 98 %" of a training set whose files lie sorted by class, the order meant is the
shuffled one in which TensorFlow Datasets stores it: the last 1 % of sorted ImageNet would be ten whole classes. Here
that order is `shuffled`: by the SHA-256 of each file's path below the dataset's folder, the same on every machine, no
seed.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from polytrain.data.importers.collection import Collection, Example, IngestError
from polytrain.data.importers.root import Root
from polytrain.progress import Progress

SHOWN_MISSING = 5


@dataclass(slots=True)
class Annotation:
    """One line of an annotation file.

    `paths` are the places where the file may lie, relative to the root and without suffix, likeliest first. `name`
    is what may stand only once (unless given: the first path). `recording` is what train may not share with val or
    test: a video's id where clips are cut from videos (unless given: the name). `splits` are two where a dataset's
    validation set stands for its test set as well.
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

    @property
    def where(self) -> str:
        return _where(self.table, self.line)


def _where(table: str, line: int) -> str:
    return f"{table}, line {line}" if line else table


@dataclass(frozen=True)
class Importer:
    """One `jobs/prepare.py NAME --root DIR --out DIR [--missing skip|fail]`.

    `read(options)` needs `options.root`, `options.missing` and what `add_flags` adds.
    """

    help: str
    layout: str
    reader: Callable[[Root, argparse.Namespace], Collection]
    description: str = ""
    flags: Callable[[argparse.ArgumentParser], None] = lambda parser: None

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """The dataset's own flags; its file's docstring becomes the command's description."""
        parser.description = self.description or self.help
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        self.flags(parser)

    def read(self, options: argparse.Namespace, progress: Progress | None = None) -> Collection:
        """What lies under `options.root`; IngestError says what is wrong with it."""
        return self.reader(Root(options.root, self.layout, progress), options)


# ------------------------------------------------------------------------------------------------------- splits


def shuffled(paths: Iterable[str]) -> list[str]:
    """The fixed order that stands for a dataset's own where its files lie sorted by class."""
    return sorted(paths, key=lambda path: hashlib.sha256(path.encode()).digest())


def boundaries(count: int, percents: Sequence[int]) -> list[int]:
    """Where consecutive parts end, the last part being the rest: 50,000 in (98,) ends at [49,000]."""
    ends, total = [], 0
    for percent in percents:
        total += percent
        ends.append(round(count * total / 100))
    return ends


def last_of(names: Iterable[str], percent: int) -> set[str]:
    """The last `percent` of the names in `shuffled` order."""
    order = shuffled(names)
    return set(order[boundaries(len(order), (100 - percent,))[0] :])


def hold_out(annotations: Iterable[Annotation], percent: int) -> list[Annotation]:
    """The last `percent` of the training annotations, in `shuffled` order of names, become val; the list keeps order.

    They are drawn from the annotations, not from the disk: a missing file moves no other one to another split.
    """
    annotations = list(annotations)
    training = {a.name or a.paths[0]: a for a in annotations if a.splits == ("train",)}
    for name in last_of(training, percent):
        training[name].splits = ("val",)
    return annotations


# ----------------------------------------------------------------------------------------------------- gathering


def check_class_count(found: Sequence[str] | set[str], expected: int, source: str, dataset: str) -> None:
    """IngestError where the annotations are another dataset's or another version's."""
    if len(found) != expected:
        raise IngestError(
            f"{source}: has {len(found)} classes, {dataset} has {expected}; "
            f"it belongs to another dataset or version, or is not whole"
        )


def gather(
    root: Root,
    annotations: Iterable[Annotation],
    options: argparse.Namespace,
    *,
    modality: str,
    classes: Sequence[str],
    multi_label: bool = False,
    notes: Sequence[str] = (),
) -> Collection:
    """The examples whose files are on disk; `options.missing` "fail" refuses where one is not.

    Duplicates and overlaps are judged by the annotations, whether or not the files are there.
    """
    known, checked = set(classes), set()
    seen = _Seen()
    examples: list[Example] = []
    missing: list[str] = []
    for count, a in enumerate(annotations, 1):
        if a.classes not in checked:
            for name in a.classes:
                if name not in known:
                    near = difflib.get_close_matches(name, classes, 1)
                    meant = f"; did you mean {near[0]!r}?" if near else ""
                    raise IngestError(f"{a.where}: class {name!r} is not among the {len(classes)} classes{meant}")
            checked.add(a.classes)
        seen.add(a)
        for path in a.paths:
            if (found := root.find(path, modality)) is not None:
                for split in a.splits:
                    examples.append(Example(found, a.classes, split, a.start_s, a.end_s))
                break
        else:
            missing.append(root.join(a.paths[0]))
        root.progress(count)
    if missing and (options.missing == "fail" or not examples):
        raise IngestError(_missing_message(root, missing, bool(examples)))
    if not any(example.split == "train" for example in examples):
        raise IngestError(f"{root.path}: none of the training files is there; the layout is {root.layout}")
    return Collection(modality, examples, multi_label, tuple(notes), tuple(classes), missing)


def _missing_message(root: Root, missing: list[str], some: bool) -> str:
    shown = "".join(f"\n  {path}" for path in missing[:SHOWN_MISSING])
    more = f"\n  and {len(missing) - SHOWN_MISSING} more" if len(missing) > SHOWN_MISSING else ""
    advice = "--missing skip leaves them out" if some else f"the layout is {root.layout}"
    how_many = f"{len(missing)} of the annotated files are" if some else "not one of the annotated files is"
    there = "missing" if some else f"there ({len(missing)})"
    return f"{root.path}: {how_many} {there}; {advice}{shown}{more}"


class _Seen:
    """Which names and recordings stood where, with one integer for each: there are millions."""

    def __init__(self) -> None:
        self.tables: dict[str, int] = {}
        self.names: dict[bool, dict[str, int]] = {True: {}, False: {}}
        self.recordings: dict[bool, dict[str, int]] = {True: {}, False: {}}

    def add(self, a: Annotation) -> None:
        name, trains = a.name or a.paths[0], "train" in a.splits
        place = self.tables.setdefault(a.table, len(self.tables)) << 32 | a.line
        first = self.names[trains].setdefault(name, place)
        if first != place:
            raise IngestError(f"{a.where}: {name!r} stands in {self._named(first)} already; an example has one row")
        shared, by = name, self.names
        if a.recording and a.recording != name:
            shared, by = a.recording, self.recordings
            by[trains].setdefault(shared, place)
        other = by[not trains].get(shared)
        if other is not None:
            here, there = ("train", "val or test") if trains else ("/".join(a.splits), "train")
            raise IngestError(
                f"{a.where}: {shared!r} is in {here}, and {self._named(other)} has it in {there}; the splits overlap, "
                f"and a test on what was trained on says nothing: take one of the two out"
            )

    def _named(self, place: int) -> str:
        tables = list(self.tables)
        return _where(tables[place >> 32], place & 0xFFFFFFFF)
