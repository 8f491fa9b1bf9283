"""Caltech-101, https://data.caltech.edu/records/mzrjq-6wc02.

Official layout (caltech-101.zip, 101_ObjectCategories.tar.gz; ROOT is the folder below or one that holds it):

    101_ObjectCategories/<class>/image_0001.jpg     102 folders: 101 objects and BACKGROUND_Google

There is no official list of splits; by custom 30 images of each class are training and all others are test. Which 30:
the first of the class in a fixed shuffled order (SHA-256 of class/file). Of these 3,060 the last 2 % (61), in the
same order over all classes, are val and the others train (PolyViT, appendix D). Classes are in TensorFlow Datasets'
order: sorted without regard to case.
"""

from __future__ import annotations

import argparse

from polytrain.data.importers.collection import Collection, IngestError
from polytrain.data.importers.importer import Annotation, Importer, check_class_count, gather, hold_out, shuffled
from polytrain.data.importers.root import Root

CLASSES = 102
TRAINING = 30
FOLDER = "101_ObjectCategories"


def _read(root: Root, options: argparse.Namespace) -> Collection:
    folders = [f"caltech-101/{FOLDER}", FOLDER]
    top = next((f"{name}/" for name in folders if root.first(name)), "")
    classes = sorted(root.folders(top), key=str.lower)
    check_class_count(classes, CLASSES, root.join(top), "Caltech-101 (with BACKGROUND_Google)")
    annotations = []
    for name in classes:
        order = shuffled(f"{name}/{stem}" for stem in root.stems(top + name, "image"))
        if len(order) <= TRAINING:
            raise IngestError(
                f"{root.join(top + name)}: has {len(order)} images; {TRAINING} are for training and others for the "
                f"test, so it is not whole: Caltech-101 has at least 31 of every class"
            )
        for place, path in enumerate(order):
            split = "train" if place < TRAINING else "test"
            annotations.append(Annotation((top + path,), (name,), (split,), root.join(top + name), name=path))
    return gather(root, hold_out(annotations, 2), options, modality="image", classes=classes)


IMPORTERS = {
    "caltech101": Importer(
        "Caltech-101; 30 images of a class for training (2 % of them val), all others test",
        "101_ObjectCategories/<class>/image_0001.jpg, 102 class folders",
        _read,
        __doc__,
    )
}
