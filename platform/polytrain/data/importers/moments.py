"""Moments in Time (version 1, 339 classes), http://moments.csail.mit.edu, and its sound tracks.

Official layout (Moments_in_Time_Raw.zip; ROOT is the unpacked folder; tables may lie in annotations/, the two folders
in videos/):

    moments_categories.txt                    "adult+female+singing,0": class name, index
    trainingSet.csv, validationSet.csv        "bathing/<clip>.mp4,bathing,3,1": file, class, votes for and against
    training/<class>/<clip>.mp4, validation/<class>/<clip>.mp4

Splits: training is train; the validation set is val and test as well (the test set's labels are not public, and the
reference code does the same), so whoever picks by val picks on the test set. A clip that is in both is refused.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from functools import partial

from polytrain.data.importers.annotations import lines, records
from polytrain.data.importers.collection import Collection, IngestError
from polytrain.data.importers.importer import Annotation, Importer, check_class_count, gather
from polytrain.data.importers.root import Root

CLASSES = 339
ROW = "file, class and votes ('bathing/x.mp4,bathing,3,1')"


def _categories(path: str) -> list[str]:
    names: dict[int, str] = {}
    for line, text in lines(path):
        name, _, index = text.rpartition(",")
        if not name or not index.isdigit():
            raise IngestError(f"{path}, line {line}: is {text!r}; it should be like 'adult+female+singing,0'")
        names[int(index)] = name
    check_class_count(set(names.values()), CLASSES, path, "Moments in Time (version 1)")
    return [names[index] for index in sorted(names)]


def _annotations(root: Root, path: str, folder: str, splits: tuple[str, ...]) -> Iterator[Annotation]:
    top = f"videos/{folder}" if root.first(f"videos/{folder}") else folder
    classes: dict[str, tuple[str]] = {}
    for line, (file, label, *_) in records(path, 2, ROW, more=True):
        stem, suffix = os.path.splitext(file)
        if suffix.lower() != ".mp4":
            raise IngestError(f"{path}, line {line}: {file!r} is no clip; a row should be {ROW}")
        if "/" not in stem:
            stem = f"{label}/{stem}"
        label = stem.partition("/")[0]
        named = classes.setdefault(label, (label,))
        yield Annotation((f"{top}/{stem}",), named, splits, path, line, stem)


def _read(modality: str, root: Root, options: argparse.Namespace) -> Collection:
    def table(name: str) -> str:
        return root.need(name, f"annotations/{name}")

    classes = _categories(table("moments_categories.txt"))
    training = _annotations(root, table("trainingSet.csv"), "training", ("train",))
    validation = _annotations(root, table("validationSet.csv"), "validation", ("val", "test"))
    annotations = (annotation for rows in (training, validation) for annotation in rows)
    return gather(root, annotations, options, modality=modality, classes=classes)


def _importer(modality: str, what: str) -> Importer:
    return Importer(
        f"{what}; the validation set is val and test",
        "moments_categories.txt, trainingSet.csv, validationSet.csv, training/<class>/ and validation/<class>/",
        partial(_read, modality),
        __doc__,
    )


IMPORTERS = {
    "moments": _importer("video", "Moments in Time, 339 classes"),
    "moments-sound": _importer("audio", "the sound tracks of Moments in Time"),
}
