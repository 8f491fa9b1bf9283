"""Dmlab, the distance task that VTAB made of DeepMind Lab frames, https://github.com/google-research/task_adaptation.

Official layout (dmlab.tar.gz, unpacked in ROOT; the name that TensorFlow Datasets downloads):

    dmlab-train.tfrecord*  dmlab-validation.tfrecord*  dmlab-test.tfrecord*
                                        tf.train.Example: image (JPEG, 360 x 480), filename, label (0 to 5)

65,550, 22,628 and 22,735 images. They have no files of their own: the JPEGs go inside the manifest as they are, when
they are asked for. The classes are {close, far, very far} x {positive, negative reward}; which number is which is
published nowhere that was found, so they keep their numbers as names. Val is the last 2 % (1,311) of the training
images in a fixed shuffled order (SHA-256 of `filename`; PolyViT, appendix D); --official-val takes the official
validation set, which is otherwise unused.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial

import pyarrow as pa

from polytrain.data import storage
from polytrain.data.importers import official_val
from polytrain.data.importers.collection import Collection, Example, IngestError
from polytrain.data.importers.importer import Importer, last_of
from polytrain.data.importers.listed import Annotation, Listed
from polytrain.data.importers.root import Root
from polytrain.data.importers.tfrecord import Bytes, examples

CLASSES = tuple("012345")


def _read(root: Root, options: argparse.Namespace) -> Collection:
    rows = Listed(options.overlap, options.duplicates)
    training = list(_examples(root, "train", "train", rows))
    if options.official_val:
        validation = [example for _, example in _examples(root, "validation", "val", rows)]
    else:
        held_out = last_of((name for name, _ in training), 2)
        validation = [replace(example, split="val") for name, example in training if name in held_out]
        training = [(name, example) for name, example in training if name not in held_out]
    test = [example for _, example in _examples(root, "test", "test", rows)]
    kept = rows.without_overlap([example for _, example in training], [name for name, _ in training])
    notes = tuple(rows.notes(len(training) - len(kept)))
    return Collection("image", [*kept, *validation, *test], notes=notes, classes=CLASSES)


def _examples(root: Root, part: str, split: str, rows: Listed) -> Iterator[tuple[str, Example]]:
    """(file name, example) of every record of one part."""
    prefix = f"dmlab-{part}.tfrecord"
    files = [name for name in root.names() if name.startswith(prefix)]
    if not files:
        root.need(prefix + "*")
    for path in map(root.join, files):
        for number, features in enumerate(examples(path), 1):
            where = f"{path}, record {number}"
            image, label, name = (features.get(key) for key in ("image", "label", "filename"))
            if not isinstance(image, Bytes) or not isinstance(name, Bytes) or not isinstance(label, int):
                raise IngestError(f"{where}: has features {', '.join(features)}; it should have image, filename, label")
            if label >= len(CLASSES):
                raise IngestError(f"{where}: label {label} is outside the {len(CLASSES)} classes")
            named = bytes(name.data).decode(errors="replace")
            root.progress(rows.rows)
            if rows.add(Annotation((named,), (CLASSES[label],), (split,), path, number, unit="record")):
                content = partial(_bytes, path, image.start, image.end)
                yield named, Example(f"{path}#{number - 1}", (CLASSES[label],), split, data=content)


def _bytes(path: str, start: int, end: int) -> bytes:
    return _file(path).read_at(end - start, start)


@lru_cache(maxsize=4)
def _file(path: str) -> pa.NativeFile:
    """Opened where and when the images are asked for, in a worker too; opening one anew costs a store a request."""
    return storage.open_file(path)


IMPORTERS = {
    "dmlab": Importer(
        "Dmlab (VTAB), 6 classes; val is the last 2 % of train",
        "dmlab-train.tfrecord*, dmlab-validation.tfrecord* and dmlab-test.tfrecord*",
        _read,
        __doc__,
        official_val.flags,
    )
}
