"""Kinetics-400, -600 and -700, and the sound tracks of Kinetics-400.

Official layout (https://github.com/cvdfoundation/kinetics-dataset, or the ActivityNet crawler's):

    train.csv, val.csv (or validate.csv), test.csv    in ROOT or ROOT/annotations; .txt does as well;
                                                      header: label,youtube_id,time_start,time_end,split
    train/<youtube_id>_<start>_<end>.mp4              start and end in seconds, six digits each; so in val/ and test/
    train/<label>/<youtube_id>_<start>_<end>.mp4      does as well; and either directly in ROOT

Of Kinetics-600 the .txt is taken where both are there: CVDF's .csv lists lack rows (val.csv about half), the .txt ones
are whole (cvdfoundation/kinetics-dataset, issue 33).

Clips vanish from YouTube, so some are always missing. Splits are the official ones. Where test.csv is absent or has
no labels, the validation set stands for test as well. Classes are train.csv's labels in sorted order, the index that
published models use. A YouTube video that is in train and in val or test is refused unless --overlap says otherwise.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

from polytrain.data.importers.annotations import number, table
from polytrain.data.importers.collection import Collection, IngestError
from polytrain.data.importers.importer import Annotation, Importer, check_class_count, gather
from polytrain.data.importers.root import Root

SPLITS = {
    "train": ("train",),
    "val": ("val", "validate", "validation"),
    "test": ("test",),
}
"""Split -> what its table and its folder may be called, and what stands in the column `split`."""
_SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}


def _tables(root: Root, classes: int, notes: list[str]) -> dict[str, str | None]:
    """Split -> its table; None where no test table with labels is there, and `notes` say why."""
    suffixes = (".txt", ".csv") if classes == 600 else (".csv", ".txt")
    names = {split: [name + suffix for suffix in suffixes for name in SPLITS[split]] for split in SPLITS}
    places = {split: [folder + name for name in names[split] for folder in ("", "annotations/")] for split in SPLITS}
    tables: dict[str, str | None] = {split: root.need(*places[split]) for split in ("train", "val")}
    found = [path for path in map(root.first, places["test"]) if path]
    unlabelled = [path for path in found if not _labelled(path)]
    tables["test"] = next((path for path in found if path not in unlabelled), None)
    if tables["test"] is None:
        notes += [f"{path}: has no labels" for path in unlabelled]
        notes.append("no labelled test set: the validation set stands for test as well")
    return tables


def _rows(path: str, split: str) -> Iterator[tuple[int, str, str, int, int]]:
    """(line, label, YouTube id, start, end) of one table."""
    for line, (label, video, start, end, named) in table(
        path, ("label", "youtube_id", "time_start", "time_end", "split")
    ):
        if _SPLIT_OF.get(named.strip()) != split:
            raise IngestError(f"{path}, line {line}: split {named!r} stands in the table of {split}")
        first, last = number(start, path, line, "time in seconds"), number(end, path, line, "time in seconds")
        yield line, label.strip(), video.strip(), int(first), int(last)


def _annotations(root: Root, path: str, split: str, splits: tuple[str, ...]) -> Iterator[Annotation]:
    folders = [f"{name}/" for name in SPLITS[split] if root.first(name)] or [""]
    labels: dict[str, tuple[tuple[str], list[str]]] = {}
    for line, label, video, start, end in _rows(path, split):
        if label not in labels:
            labels[label] = (label,), [f"{folder}{below}" for folder in folders for below in ("", f"{label}/")]
        classes, places = labels[label]
        name = f"{video}_{start:06d}_{end:06d}"
        yield Annotation(tuple(place + name for place in places), classes, splits, path, line, name, video)


def _read(classes: int, modality: str, root: Root, options: argparse.Namespace) -> Collection:
    notes: list[str] = []
    tables = _tables(root, classes, notes)
    labels = sorted({label.strip() for _, (label,) in table(tables["train"], ("label",))})
    check_class_count(labels, classes, tables["train"], f"Kinetics-{classes}")
    annotations = (
        annotation
        for split, path in tables.items()
        if path
        for annotation in _annotations(
            root, path, split, ("val", "test") if split == "val" and not tables["test"] else (split,)
        )
    )
    return gather(root, annotations, options, modality=modality, classes=labels, notes=notes)


def _labelled(path: str) -> bool:
    try:
        return any(label for _, (label,) in table(path, ("label",)))
    except IngestError:
        return False


def _importer(classes: int, modality: str = "video") -> Importer:
    what = "the sound tracks of " if modality == "audio" else ""
    return Importer(
        f"{what}Kinetics-{classes}; official splits",
        "train.csv, val.csv and test.csv (or in annotations/), and train/, val/ and test/ with "
        "<youtube_id>_<start>_<end>.mp4",
        partial(_read, classes, modality),
        __doc__,
    )


IMPORTERS = {
    "kinetics400": _importer(400),
    "kinetics600": _importer(600),
    "kinetics700": _importer(700),
    "kinetics400-sound": _importer(400, "audio"),
}
