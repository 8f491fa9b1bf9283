"""Something-Something v2, https://www.qualcomm.com/developer/software/something-something-v-2-dataset.

Official layout; the tables in ROOT, ROOT/labels or ROOT/annotations, with or without "something-something-v2-" before
their names:

    labels.json                      {"Approaching something with your camera": "0", ...}, 174 templates
    train.json, validation.json      [{"id": "78687", "template": "Holding [something] next to [something]", ...}, ...]
    20bn-something-something-v2/<id>.webm      or videos/<id>.webm, or in ROOT; other suffixes do as well

Splits: train is train; the validation set is val and test as well, as published results use it. A template without
its brackets is the class's name; classes are in labels.json's order. A video in both tables is refused unless --overlap
says otherwise.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from polytrain.data.importers.annotations import document
from polytrain.data.importers.collection import Collection, IngestError
from polytrain.data.importers.importer import Annotation, Importer, check_class_count, gather
from polytrain.data.importers.root import Root

CLASSES = 174
FOLDERS = ("20bn-something-something-v2", "videos")


def _table(root: Root, name: str) -> str:
    names = (name, f"something-something-v2-{name}")
    return root.need(*(f"{folder}{name}" for folder in ("", "labels/", "annotations/") for name in names))


def _classes(path: str) -> list[str]:
    labels = document(path)
    if not isinstance(labels, dict) or not all(str(index).isdigit() for index in labels.values()):
        raise IngestError(f"{path}: should be one JSON object, template -> index")
    check_class_count(set(labels), CLASSES, path, "Something-Something v2")
    return sorted(labels, key=lambda name: int(labels[name]))


def _annotations(root: Root, path: str, splits: tuple[str, ...]) -> Iterator[Annotation]:
    places = [f"{name}/" for name in FOLDERS if root.first(name)] or [""]
    rows = document(path)
    if not isinstance(rows, list):
        raise IngestError(f"{path}: should be a JSON list of objects with id and template")
    for entry, row in enumerate(rows, 1):
        video, template = (row.get("id"), row.get("template")) if isinstance(row, dict) else (None, None)
        if not video or not template:
            raise IngestError(f"{path}, entry {entry}: should be an object with id and template; is {str(row)[:80]}")
        name = template.replace("[", "").replace("]", "")
        paths = tuple(f"{place}{video}" for place in places)
        yield Annotation(paths, (name,), splits, path, entry, str(video))


def _read(root: Root, options: argparse.Namespace) -> Collection:
    classes = _classes(_table(root, "labels.json"))
    parts = (("train.json", ("train",)), ("validation.json", ("val", "test")))
    annotations = (a for name, splits in parts for a in _annotations(root, _table(root, name), splits))
    return gather(root, annotations, options, modality="video", classes=classes)


IMPORTERS = {
    "ssv2": Importer(
        "Something-Something v2; the validation set is val and test",
        "labels.json, train.json, validation.json and 20bn-something-something-v2/<id>.webm",
        _read,
        __doc__,
    )
}
