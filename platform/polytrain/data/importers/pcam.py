"""PatchCamelyon, https://github.com/basveeling/pcam.

Official layout (six HDF5 files from Zenodo, record 2546921, unpacked with gunzip, in ROOT):

    camelyonpatch_level_2_split_{train,valid,test}_x.h5    x: [n, 96, 96, 3] uint8
    camelyonpatch_level_2_split_{train,valid,test}_y.h5    y: [n, 1, 1, 1]; 1: tumour in the central 32 x 32 pixels

262,144 training, 32,768 validation and 32,768 test images. They have no files of their own: they become PNGs inside
the manifest, when they are asked for. Val is the last 2 % (5,243) of the training images in a fixed shuffled order
(SHA-256 of "train_<n>"; PolyViT, appendix D); --official-val takes the official validation set, which is otherwise
unused.
"""

from __future__ import annotations

import argparse
import os
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np

from polytrain.data import storage
from polytrain.data.importers import official_val
from polytrain.data.importers.collection import Collection, Example, IngestError
from polytrain.data.importers.importer import Importer, last_of
from polytrain.data.importers.png import encode
from polytrain.data.importers.root import Root

if TYPE_CHECKING:
    import h5py

CLASSES = ("normal", "tumour")
SHAPE = (96, 96, 3)
CACHE = 64 << 20
"""Bytes of unpacked chunks kept: images come one by one, and h5py's default of 1 MB unpacks a chunk for each anew."""


def _read(root: Root, options: argparse.Namespace) -> Collection:
    held_out: set[str] = set()
    training = _examples(root, "train", "train")
    if options.official_val:
        validation = _examples(root, "valid", "val")
    else:
        held_out = last_of((_name(e) for e in training), 2)
        validation = [Example(e.path, e.classes, "val", data=e.data) for e in training if _name(e) in held_out]
    training = [e for e in training if _name(e) not in held_out]
    return Collection("image", [*training, *validation, *_examples(root, "test", "test")], classes=CLASSES)


def _name(example: Example) -> str:
    """TensorFlow Datasets' key: train_17."""
    return f"train_{example.path.rpartition('#')[2]}"


def _examples(root: Root, part: str, split: str) -> list[Example]:
    images, labels = (_file(root, f"camelyonpatch_level_2_split_{part}_{kind}.h5") for kind in "xy")
    count = _images(images).shape[0]
    values = np.asarray(_dataset(labels, "y")).reshape(-1)
    if len(values) != count:
        raise IngestError(f"{labels}: has {len(values)} labels for the {count} images of {os.path.basename(images)}")
    if (wrong := np.flatnonzero(~np.isin(values, (0, 1)))).size:
        raise IngestError(f"{labels}, y[{wrong[0]}]: label {values[wrong[0]]} is outside 0 and 1")
    return [
        Example(f"{images}#{index}", (CLASSES[label],), split, data=partial(_image, images, index))
        for index, label in enumerate(values.tolist())
    ]


def _file(root: Root, name: str) -> str:
    if (packed := root.first(name + ".gz")) and not root.first(name):
        raise IngestError(f"{packed}: is still packed; gunzip it")
    return root.need(name)


def _dataset(path: str, name: str) -> h5py.Dataset:
    try:
        import h5py
    except ModuleNotFoundError:
        raise IngestError(f"{path}: reading it needs h5py: pip install h5py") from None
    try:
        # From a store only the chunks that are asked for come: a worker needs few of train's 6.4 GB.
        source = storage.open_file(path) if storage.is_remote(path) else path
        return h5py.File(source, "r", rdcc_nbytes=CACHE)[name]
    except (FileNotFoundError, storage.StorageError) as error:
        raise IngestError(f"{path}: cannot be read: {error}") from None
    except (OSError, KeyError) as error:
        raise IngestError(f"{path}: is no whole HDF5 file with a dataset {name!r}: {error}") from None


@lru_cache(maxsize=4)
def _images(path: str) -> h5py.Dataset:
    """[n, 96, 96, 3] uint8, opened where and when the images are encoded, in a worker too."""
    images = _dataset(path, "x")
    if images.shape[1:] != SHAPE or images.dtype != np.uint8:
        raise IngestError(f"{path}: x is {images.dtype} {list(images.shape)}; it should be uint8 [n, 96, 96, 3]")
    return images


def _image(path: str, index: int) -> bytes:
    return encode(_images(path)[index])


IMPORTERS = {
    "pcam": Importer(
        "PatchCamelyon; val is the last 2 % of train",
        "camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5",
        _read,
        __doc__,
        official_val.flags,
        lists=False,
    )
}
