"""VGGSound, https://www.robots.ox.ac.uk/~vgg/data/vggsound/.

Official layout: one table without a header, in ROOT, and one ten-second file a row:

    vggsound.csv     ---g-f_I2yQ,1,people marching,test      YouTube id, start in seconds, class, train or test
    <id>_<start>.*   start in six digits (---g-f_I2yQ_000001.mp4), as the official archive names them; <id>_<start>,
                     <id>_<start>_<end> (milliseconds) and <id> do as well. In ROOT, or in its folder
                     video, videos, audio, train or test. A video's sound track is read.

Splits: train is train; test is val and test, as in the reference code (there is no official validation set). Classes
are the 309 names in sorted order. A YouTube video that is in train and in test is refused, and so is a row that stands
twice, unless --overlap and --duplicates say otherwise.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from polytrain.data.importers.annotations import number, records
from polytrain.data.importers.collection import Collection, IngestError
from polytrain.data.importers.importer import Annotation, Importer, check_class_count, gather
from polytrain.data.importers.root import Root

CLASSES = 309
SECONDS = 10
FOLDERS = ("video", "videos", "audio", "train", "test")
SPLITS = {"train": ("train",), "test": ("val", "test")}
ROW = "YouTube id, start in seconds, class, train or test; a class with a comma needs quotes"


def _annotations(root: Root, path: str) -> Iterator[Annotation]:
    places = [f"{name}/" for name in FOLDERS if root.first(name)] or [""]
    classes: dict[str, tuple[str]] = {}
    for line, (video, start, label, split) in records(path, 4, ROW):
        if split not in SPLITS:
            raise IngestError(f"{path}, line {line}: split {split!r} is unknown; a row should be {ROW}")
        first = int(number(start, path, line, "start in seconds"))
        name = f"{video}_{first:06d}"
        stems = (name, f"{video}_{first}", f"{video}_{first * 1000}_{(first + SECONDS) * 1000}", video)
        paths = tuple(place + stem for stem in stems for place in places)
        named = classes.setdefault(label, (label,))
        yield Annotation(paths, named, SPLITS[split], path, line, name, video)


def _read(root: Root, options: argparse.Namespace) -> Collection:
    path = root.need("vggsound.csv")
    classes = sorted({label for _, (_, _, label, _) in records(path, 4, ROW)})
    check_class_count(classes, CLASSES, path, "VGGSound")
    return gather(root, _annotations(root, path), options, modality="audio", classes=classes)


IMPORTERS = {
    "vggsound": Importer(
        "VGGSound; the test set is val and test",
        "vggsound.csv, and video/ (or audio/) with <youtube id>_<start, six digits>.mp4",
        _read,
        __doc__,
    )
}
