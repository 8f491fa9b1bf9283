"""What the importers share: a root with an official layout, and annotations that become a Collection.

An importer reads its dataset's annotation files into `Annotation`s; `gather` looks every one up on disk, lists what
is missing (videos vanish from the web, so that is normal) and refuses what cannot be right: a class that the class
list does not know, a name that stands twice, a recording that is in train and in val or test
(`listed`; `--duplicates` and `--overlap` say otherwise).

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

from polytrain.data.importers import listed
from polytrain.data.importers.collection import Collection, Example, IngestError
from polytrain.data.importers.listed import Annotation, Listed
from polytrain.data.importers.root import Root
from polytrain.progress import Progress

SHOWN_MISSING = 5


@dataclass(frozen=True)
class Importer:
    """One `jobs/prepare.py NAME --root DIR --out DIR [--missing skip|fail]`.

    `read(options)` needs `options.root`, `options.missing` and what `add_flags` adds. `lists`: the examples have names,
    which may stand twice.
    """

    help: str
    layout: str
    reader: Callable[[Root, argparse.Namespace], Collection]
    description: str = ""
    flags: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    lists: bool = True

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """The dataset's own flags; its file's docstring becomes the command's description."""
        parser.description = self.description or self.help
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        self.flags(parser)
        if self.lists:
            listed.add_flags(parser)

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
    training = [a for a in annotations if a.splits == ("train",)]
    held_out = last_of({a.name or a.paths[0] for a in training}, percent)
    for a in training:
        if (a.name or a.paths[0]) in held_out:
            a.splits = ("val",)
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

    Duplicates and overlaps are judged by the annotations, whether or not the files are there; `options.duplicates`
    and `options.overlap` say how.
    """
    known, checked = set(classes), set()
    rows = Listed(options.overlap, options.duplicates)
    examples: list[Example] = []
    shared: list[str] = []
    missing: list[str] = []
    for count, a in enumerate(annotations, 1):
        if a.classes not in checked:
            for name in a.classes:
                if name not in known:
                    near = difflib.get_close_matches(name, classes, 1)
                    meant = f"; did you mean {near[0]!r}?" if near else ""
                    raise IngestError(f"{a.where}: class {name!r} is not among the {len(classes)} classes{meant}")
            checked.add(a.classes)
        root.progress(count)
        if not rows.add(a):
            continue
        for path in a.paths:
            if (found := root.find(path, modality)) is not None:
                for split in a.splits:
                    examples.append(Example(found, a.classes, split, a.start_s, a.end_s))
                    shared.append(a.shared)
                break
        else:
            missing.append(root.join(a.paths[0]))
    if missing and (options.missing == "fail" or not examples):
        raise IngestError(_missing_message(root, missing, bool(examples)))
    before = len(examples)
    examples = rows.without_overlap(examples, shared)
    if not any(example.split == "train" for example in examples):
        raise IngestError(f"{root.path}: none of the training files is there; the layout is {root.layout}")
    notes = (*notes, *rows.notes(before - len(examples)))
    return Collection(modality, examples, multi_label, notes, tuple(classes), missing)


def _missing_message(root: Root, missing: list[str], some: bool) -> str:
    shown = "".join(f"\n  {path}" for path in missing[:SHOWN_MISSING])
    more = f"\n  and {len(missing) - SHOWN_MISSING} more" if len(missing) > SHOWN_MISSING else ""
    advice = "--missing skip leaves them out" if some else f"the layout is {root.layout}"
    how_many = f"{len(missing)} of the annotated files are" if some else "not one of the annotated files is"
    there = "missing" if some else f"there ({len(missing)})"
    return f"{root.path}: {how_many} {there}; {advice}{shown}{more}"
