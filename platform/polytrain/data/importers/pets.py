"""Oxford-IIIT Pets, https://www.robots.ox.ac.uk/~vgg/data/pets/.

Official layout (images.tar.gz and annotations.tar.gz, unpacked in ROOT):

    images/Abyssinian_1.jpg ...
    annotations/trainval.txt, annotations/test.txt    "Abyssinian_100 1 1 1": image, class 1-37, species, breed

Splits (PolyViT, appendix A): train is the first 90 % of trainval.txt, val the last 10 %, test is test.txt. The file
is sorted by class, so first and last are meant in a fixed shuffled order (SHA-256 of the image's path). It is drawn
from the file, not from the disk: a missing image moves no other one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from polytrain.data.importers.annotations import lines
from polytrain.data.importers.collection import Collection, IngestError
from polytrain.data.importers.importer import Annotation, Importer, check_class_count, gather, hold_out
from polytrain.data.importers.root import Root

CLASSES = 37


def _annotations(table: str, split: str, names: dict[int, str]) -> Iterator[Annotation]:
    for number, line in lines(table):
        if line.startswith("#"):
            continue
        image, *numbers = line.split()
        name, _, _ = image.rpartition("_")
        if len(numbers) != 3 or not numbers[0].isdigit() or not name:
            raise IngestError(f"{table}, line {number}: is {line!r}; it should be like 'Abyssinian_100 1 1 1'")
        if not 1 <= int(numbers[0]) <= CLASSES:
            raise IngestError(f"{table}, line {number}: class {numbers[0]} is not among the {CLASSES} classes")
        other = names.setdefault(int(numbers[0]), name)
        if other != name:
            raise IngestError(f"{table}, line {number}: class {numbers[0]} is {name!r} here and {other!r} before")
        yield Annotation((f"images/{image}",), (name,), (split,), table, number)


def _read(root: Root, options: argparse.Namespace) -> Collection:
    names: dict[int, str] = {}
    table = root.need("annotations/trainval.txt")
    training = hold_out(_annotations(table, "train", names), 10)
    check_class_count(set(names.values()), CLASSES, table, "Oxford-IIIT Pets")
    test = _annotations(root.need("annotations/test.txt"), "test", names)
    classes = [names[number] for number in sorted(names)]
    return gather(root, [*training, *test], options, modality="image", classes=classes)


IMPORTERS = {
    "pets": Importer(
        "Oxford-IIIT Pets; val is the last 10 % of trainval",
        "images/, annotations/trainval.txt and annotations/test.txt",
        _read,
        __doc__,
    )
}
