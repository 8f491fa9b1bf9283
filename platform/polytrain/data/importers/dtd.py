"""DTD, the Describable Textures Dataset, https://www.robots.ox.ac.uk/~vgg/data/dtd/.

Official layout (dtd-r1.0.1.tar.gz; ROOT is dtd/ or the folder that holds it):

    images/banded/banded_0002.jpg ...
    labels/train1.txt ... train10.txt, val1.txt ... val10.txt, test1.txt ... test10.txt
                                       lines such as banded/banded_0002.jpg

Ten official splits, 1,880 images in each of the three parts: --partition chooses (1). Val is the last 2 % (38) of the
training list in a fixed shuffled order (SHA-256 of the path; PolyViT, appendix D); --official-val takes val1.txt.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

from polytrain.data.importers import official_val
from polytrain.data.importers.annotations import lines
from polytrain.data.importers.collection import Collection, IngestError
from polytrain.data.importers.importer import Annotation, Importer, check_class_count, gather, hold_out
from polytrain.data.importers.root import Root

CLASSES = 47


def _annotations(root: Root, top: str, split: str, partition: int) -> Iterator[Annotation]:
    table = root.need(f"{top}labels/{split}{partition}.txt")
    for number, line in lines(table):
        name, _, file = line.partition("/")
        if not file:
            raise IngestError(f"{table}, line {number}: is {line!r}; it should be like 'banded/banded_0002.jpg'")
        path = f"{top}images/{os.path.splitext(line)[0]}"
        yield Annotation((path,), (name,), (split,), table, number, line)


def _read(root: Root, options: argparse.Namespace) -> Collection:
    top = "dtd/" if root.first("dtd") else ""
    parts = {split: list(_annotations(root, top, split, options.partition)) for split in ("train", "val", "test")}
    classes = sorted({name for a in parts["train"] for name in a.classes})
    check_class_count(classes, CLASSES, root.join(f"{top}labels/train{options.partition}.txt"), "DTD")
    training = [*parts["train"], *parts["val"]] if options.official_val else hold_out(parts["train"], 2)
    return gather(root, [*training, *parts["test"]], options, modality="image", classes=classes)


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--partition", type=int, choices=range(1, 11), default=1, help="official split (1)")
    official_val.flags(parser)


IMPORTERS = {
    "dtd": Importer(
        "DTD (textures), an official split; val is the last 2 % of its training list",
        "images/<class>/*.jpg and labels/train1.txt, val1.txt, test1.txt",
        _read,
        __doc__,
        _flags,
    )
}
