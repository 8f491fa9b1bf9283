"""SUN397, https://vision.princeton.edu/projects/2010/SUN/.

Official layout (SUN397.tar.gz, and Partitions.zip unpacked in ROOT, ROOT/Partitions or ROOT/SUN397):

    SUN397/a/abbey/sun_aaalbzqrimafwbiv.jpg ...
    ClassName.txt                                      397 lines such as /a/abbey
    Training_01.txt ... Training_10.txt, Testing_01.txt ... Testing_10.txt
                                                       lines such as /a/abbey/sun_aaalbzqrimafwbiv.jpg

Ten official partitions, each with 50 training and 50 test images of every class: --partition chooses (1). PolyViT
(appendix D) says "2 % of the train set for validation and standard test sets": val is the last 2 % of the partition's
training list (397 of 19,850) in a fixed shuffled order (SHA-256 of the path). The 76,128-image split of VTAB is
TensorFlow Datasets' own, not this one.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

from polytrain.data.importers.annotations import lines
from polytrain.data.importers.collection import Collection
from polytrain.data.importers.importer import Annotation, Importer, check_class_count, gather, hold_out
from polytrain.data.importers.root import Root

CLASSES = 397


def _class(path: str) -> str:
    """/c/church/outdoor -> church/outdoor."""
    return path.lstrip("/").partition("/")[2]


def _read(root: Root, options: argparse.Namespace) -> Collection:
    def listed(name: str) -> str:
        return root.need(name, f"Partitions/{name}", f"SUN397/{name}")

    top = "SUN397" if root.first("SUN397") else ""

    def annotations(name: str, split: str) -> Iterator[Annotation]:
        table = listed(name)
        for number, line in lines(table):
            stem = os.path.splitext(line.lstrip("/"))[0]
            path = f"{top}/{stem}" if top else stem
            yield Annotation((path,), (_class(os.path.dirname(line)),), (split,), table, number, line)

    names = listed("ClassName.txt")
    classes = [_class(line) for _, line in lines(names)]
    check_class_count(set(classes), CLASSES, names, "SUN397")
    training = hold_out(annotations(f"Training_{options.partition:02d}.txt", "train"), 2)
    test = annotations(f"Testing_{options.partition:02d}.txt", "test")
    return gather(root, [*training, *test], options, modality="image", classes=classes)


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--partition", type=int, choices=range(1, 11), default=1, help="official partition (1)")


IMPORTERS = {
    "sun397": Importer(
        "SUN397, an official partition; val is the last 2 % of its training list",
        "SUN397/<letter>/<class>/*.jpg, ClassName.txt, Training_01.txt and Testing_01.txt",
        _read,
        __doc__,
        _flags,
    )
}
