"""Epic-Kitchens-100, verbs or nouns, https://github.com/epic-kitchens/epic-kitchens-100-annotations.

Official layout; the tables in ROOT, ROOT/annotations or ROOT/epic-kitchens-100-annotations, the videos as
epic-downloader leaves them:

    EPIC_100_train.csv, EPIC_100_validation.csv              narration_id, participant_id, video_id, ...
    EPIC_100_verb_classes.csv, EPIC_100_noun_classes.csv     id, key, instances, category
    EPIC-KITCHENS/P01/videos/P01_01.MP4                      or P01/videos/ or videos/ in ROOT

A row is one action: a clip of its video, start_timestamp to stop_timestamp (hours:minutes:seconds). The validation
set is val and test as well: the test set's labels are not public. Classes are the 97 verbs or 300 nouns by id, under
their key. A video that is in train and in validation is refused unless --overlap says otherwise.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

from polytrain.data.importers.annotations import number, table
from polytrain.data.importers.collection import Collection, IngestError
from polytrain.data.importers.importer import Annotation, Importer, check_class_count, gather
from polytrain.data.importers.root import Root

CLASSES = {"verb": 97, "noun": 300}


def _table(root: Root, name: str) -> str:
    return root.need(name, f"annotations/{name}", f"epic-kitchens-100-annotations/{name}")


def _classes(root: Root, target: str) -> dict[str, str]:
    """id -> key, in the order of the ids."""
    path = _table(root, f"EPIC_100_{target}_classes.csv")
    rows = [(int(number(index, path, line, "class id")), key) for line, (index, key) in table(path, ("id", "key"))]
    check_class_count({key for _, key in rows}, CLASSES[target], path, f"Epic-Kitchens-100 ({target}s)")
    return {str(index): key for index, key in sorted(rows)}


def _seconds(text: str, path: str, line: int) -> float:
    parts = text.split(":")
    if len(parts) != 3:
        raise IngestError(f"{path}, line {line}: {text!r} is no time; it should be like 00:01:02.345")
    hours, minutes, seconds = (number(part, path, line, "part of a time such as 00:01:02.345") for part in parts)
    return round(hours * 3600 + minutes * 60 + seconds, 3)


def _annotations(
    root: Root, path: str, target: str, classes: dict[str, str], splits: tuple[str, ...]
) -> Iterator[Annotation]:
    columns = ("narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp", f"{target}_class")
    for line, (narration, participant, video, start, stop, index) in table(path, columns):
        if index not in classes:
            raise IngestError(f"{path}, line {line}: {target}_class {index!r} is not among the {len(classes)} classes")
        first, last = _seconds(start, path, line), _seconds(stop, path, line)
        if last <= first:
            raise IngestError(f"{path}, line {line}: the action ends ({stop}) at or before its start ({start})")
        places = (
            f"EPIC-KITCHENS/{participant}/videos/{video}",
            f"{participant}/videos/{video}",
            f"videos/{participant}/{video}",
            f"videos/{video}",
        )
        named = (classes[index],)
        yield Annotation(places, named, splits, path, line, narration, video, first, last)


def _read(target: str, root: Root, options: argparse.Namespace) -> Collection:
    classes = _classes(root, target)
    parts = (("EPIC_100_train.csv", ("train",)), ("EPIC_100_validation.csv", ("val", "test")))
    annotations = (a for name, splits in parts for a in _annotations(root, _table(root, name), target, classes, splits))
    return gather(root, annotations, options, modality="video", classes=list(classes.values()))


def _importer(target: str) -> Importer:
    return Importer(
        f"Epic-Kitchens-100, {CLASSES[target]} {target}s; the validation set is val and test",
        f"EPIC_100_train.csv, EPIC_100_validation.csv, EPIC_100_{target}_classes.csv and "
        "EPIC-KITCHENS/<participant>/videos/<video>.MP4",
        partial(_read, target),
        __doc__,
    )


IMPORTERS = {f"epic-{target}": _importer(target) for target in CLASSES}
