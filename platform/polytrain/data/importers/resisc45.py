"""NWPU-RESISC45, remote sensing scenes.

Official layout (NWPU-RESISC45.rar; ROOT is the folder below or the one that holds it):

    NWPU-RESISC45/<class>/<class>_001.jpg ... <class>_700.jpg    45 classes

There is no official split. PolyViT (appendix A): train is the first 60 %, val 60 to 80 %, test the last 20 %. The
files are sorted by class, so the order meant is a fixed shuffled one (SHA-256 of class/file).
"""

from __future__ import annotations

import argparse

from polytrain.data.importers.collection import Collection
from polytrain.data.importers.importer import Annotation, Importer, boundaries, check_class_count, gather, shuffled
from polytrain.data.importers.root import Root

CLASSES = 45


def _read(root: Root, options: argparse.Namespace) -> Collection:
    folder = "NWPU-RESISC45" if root.first("NWPU-RESISC45") else ""
    top = folder + "/" if folder else ""
    classes = root.folders(folder)
    check_class_count(classes, CLASSES, root.join(folder), "RESISC45")
    order = shuffled(f"{name}/{stem}" for name in classes for stem in root.stems(top + name, "image"))
    ends = boundaries(len(order), (60, 20))
    annotations = [
        Annotation((top + path,), (path.split("/")[0],), (split,), root.join(folder), name=path)
        for split, start, end in (("train", 0, ends[0]), ("val", *ends), ("test", ends[1], len(order)))
        for path in order[start:end]
    ]
    return gather(root, annotations, options, modality="image", classes=classes)


IMPORTERS = {
    "resisc45": Importer(
        "RESISC45; first 60 % train, 60 to 80 % val, last 20 % test",
        "NWPU-RESISC45/<class>/<class>_001.jpg, 45 class folders",
        _read,
        __doc__,
    )
}
