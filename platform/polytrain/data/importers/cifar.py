"""CIFAR-10 and CIFAR-100 from the binary version, https://www.cs.toronto.edu/~kriz/cifar.html.

Official layout (cifar-10-binary.tar.gz; ROOT is the folder below or the one that holds it):

    cifar-10-batches-bin/   data_batch_1.bin ... data_batch_5.bin  test_batch.bin  batches.meta.txt
    cifar-100-binary/       train.bin  test.bin  fine_label_names.txt  coarse_label_names.txt

A record is the label (CIFAR-100: coarse label, then fine label, which is used), one byte each, and 3072 bytes of
pixels: the red plane, the green, the blue, 32 rows of 32. Images have no files of their own: they become PNGs inside
the manifest, when they are asked for. The python version is pickle, which runs code on loading: it is refused.

Splits (PolyViT, appendix A): train is the first 98 % of the training images in the files' order, which is mixed
already (data_batch_1 to 5; train.bin), val the last 2 % (the last 1,000 of 50,000), test the test batch.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from polytrain.data import storage
from polytrain.data.importers.annotations import lines
from polytrain.data.importers.collection import Collection, Example, IngestError
from polytrain.data.importers.importer import Importer, boundaries
from polytrain.data.importers.png import encode
from polytrain.data.importers.root import Root

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Version:
    name: str
    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    names: str
    classes: int
    label_bytes: int  # the last of them is the label
    pickled: tuple[str, ...]


CIFAR10 = _Version(
    "CIFAR-10", "cifar-10-batches-bin", "cifar-10-binary.tar.gz",
    tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt", 10, 1,
    ("data_batch_1", "cifar-10-batches-py"),
)  # fmt: skip
CIFAR100 = _Version(
    "CIFAR-100", "cifar-100-binary", "cifar-100-binary.tar.gz",
    ("train.bin",), "test.bin", "fine_label_names.txt", 100, 2, ("train", "cifar-100-python"),
)  # fmt: skip


def _read(version: _Version, root: Root, options: argparse.Namespace) -> Collection:
    folder = version.folder + "/" if root.first(version.folder) else ""
    pickled = root.first(*(f"{folder}{name}" for name in version.pickled))
    if pickled and not root.first(folder + version.test):
        raise IngestError(
            f"{pickled}: is the python version of {version.name}, a pickle, which runs code when it is loaded; "
            f"take the binary version instead: {version.archive}"
        )
    path = root.need(folder + version.names)
    classes = tuple(line for _, line in lines(path))
    if len(classes) != version.classes:
        raise IngestError(f"{path}: names {len(classes)} classes; {version.name} has {version.classes}")
    training = [e for name in version.train for e in _examples(version, root, folder + name, classes, "train")]
    end = boundaries(len(training), (98,))[0]
    held_out = [Example(e.path, e.classes, "val", data=e.data) for e in training[end:]]
    test = _examples(version, root, folder + version.test, classes, "test")
    return Collection("image", training[:end] + held_out + test, classes=classes)


def _examples(version: _Version, root: Root, name: str, classes: tuple[str, ...], split: str) -> list[Example]:
    path, size = root.need(name), version.label_bytes + PIXELS
    length = storage.kinds([path])[0].size
    if not length or length % size:
        raise IngestError(
            f"{path}: has {length or 0} bytes, which are no whole number of {size}-byte records: it is cut "
            f"short, or of another dataset than {version.name}"
        )
    labels = _records(path, size)[:, version.label_bytes - 1]
    if (wrong := np.flatnonzero(labels >= version.classes)).size:
        raise IngestError(
            f"{path}, record {wrong[0] + 1}: label {labels[wrong[0]]} is outside the {version.classes} classes of "
            f"{version.name}"
        )
    named = [(name,) for name in classes]
    return [
        Example(f"{path}#{index}", named[label], split, data=partial(_image, path, size, index))
        for index, label in enumerate(labels.tolist())
    ]


@lru_cache(maxsize=16)
def _records(path: str, size: int) -> np.ndarray:
    """[records, size] uint8, opened where and when the images are encoded, in a worker too.

    Mapped; from a store it is fetched whole (30 MB, CIFAR-100's train.bin 154 MB): a request an image costs more.
    """
    if storage.is_remote(path):
        return np.frombuffer(storage.fetch(path), np.uint8).reshape(-1, size)
    return np.memmap(path, np.uint8, "r").reshape(-1, size)


def _image(path: str, size: int, index: int) -> bytes:
    return encode(_records(path, size)[index, size - PIXELS :].reshape(3, 32, 32).transpose(1, 2, 0))


IMPORTERS = {
    "cifar10": Importer(
        "CIFAR-10, binary version; val is the last 2 % of train",
        "data_batch_1.bin to data_batch_5.bin, test_batch.bin and batches.meta.txt (cifar-10-binary.tar.gz)",
        partial(_read, CIFAR10),
        __doc__,
        lists=False,
    ),
    "cifar100": Importer(
        "CIFAR-100, binary version, fine labels; val is the last 2 % of train",
        "train.bin, test.bin and fine_label_names.txt (cifar-100-binary.tar.gz)",
        partial(_read, CIFAR100),
        __doc__,
        lists=False,
    ),
}
