"""KITTI distance: how far is the nearest vehicle? The task that VTAB makes of KITTI's object detection set.

Official layout (https://www.cvlibs.net/datasets/kitti/eval_object.php, unpacked in ROOT):

    training/image_2/000000.png ...           data_object_image_2.zip
    training/label_2/000000.txt ...           data_object_label_2.zip
    mapping/train_rand.txt, mapping/train_mapping.txt      devkit_object.zip (devkit_object/mapping/ does as well)

The class comes from label_2: each line is type, truncated, occluded, alpha, box (4), size (3), location x y z
(metres, camera coordinates), rotation. The distance is the smallest z of all Car, Van and Truck: up to 8 m, 8 to 20
m, more than 20 m; an image without one is class 3 (VTAB's `closest_vehicle_distance`).

The official test labels are not public. The test set is TensorFlow Datasets' (so VTAB's): the frames of 10 % of the
drives, drawn by numpy's RandomState(123); further 10 % are its validation drives. Val is the last 2 % of its training
frames in a fixed shuffled order (PolyViT, appendix D; neighbours of val's frames are trained on); --official-val
takes the validation drives, which are otherwise unused.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from polytrain.data.importers import official_val
from polytrain.data.importers.annotations import lines, number
from polytrain.data.importers.collection import Collection, IngestError
from polytrain.data.importers.importer import Annotation, Importer, gather, hold_out
from polytrain.data.importers.root import Root

CLASSES = ("up to 8 m", "8 to 20 m", "more than 20 m", "no vehicle")
NEARER = (8.0, 20.0)
VEHICLES = ("Car", "Van", "Truck")
TYPES = (*VEHICLES, "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc", "DontCare")
FIELDS = 15
Z = 13


def distance_class(path: str) -> int:
    """The class of one label_2 file."""
    nearest = None
    for line, text in lines(path):
        values = text.split()
        if len(values) != FIELDS or values[0] not in TYPES:
            raise IngestError(
                f"{path}, line {line}: is {text[:60]!r}; it should be a type and 14 numbers (KITTI label_2)"
            )
        if values[0] in VEHICLES:
            try:
                z = float(values[Z])
            except ValueError:
                raise IngestError(f"{path}, line {line}: location z is {values[Z]!r}, which is no number") from None
            nearest = z if nearest is None else min(nearest, z)
    if nearest is None:
        return 3
    return sum(nearest > limit for limit in NEARER)


def _drives(root: Root) -> dict[str, list[int]]:
    """Drive -> the images that are its frames."""
    ranks = root.need("mapping/train_rand.txt", "devkit_object/mapping/train_rand.txt")
    mapping = root.need("mapping/train_mapping.txt", "devkit_object/mapping/train_mapping.txt")
    frames = {row: line.split() for row, line in lines(mapping)}
    drives = defaultdict(list)
    numbers = [value for _, line in lines(ranks) for value in line.split(",") if value.strip()]
    for image, value in enumerate(numbers):
        row = int(number(value, ranks, 1, "line of train_mapping.txt"))
        if len(frames.get(row, ())) != 3:
            raise IngestError(f"{ranks}: image {image} is line {row} of {mapping}, which is no 'date drive frame'")
        drives[frames[row][1]].append(image)
    return drives


def _splits(drives: dict[str, list[int]]) -> dict[int, str]:
    """Image -> train, val or test, drawn exactly as TensorFlow Datasets does."""
    random = np.random.RandomState(123)
    count = max(1, len(drives) // 10)
    test = set(random.choice(sorted(drives), count, replace=False).tolist())
    val = set(random.choice(sorted(set(drives) - test), count, replace=False).tolist())
    return {
        image: "test" if drive in test else "val" if drive in val else "train"
        for drive, images in drives.items()
        for image in images
    }


def _annotations(root: Root, split_of: dict[int, str]) -> Iterator[Annotation]:
    labelled = set(root.names("training/label_2"))
    for image, split in sorted(split_of.items()):
        file = f"{image:06d}.txt"
        table = root.join(f"training/label_2/{file}") if file in labelled else root.need(f"training/label_2/{file}")
        name = CLASSES[distance_class(table)]
        root.count("label files read")
        yield Annotation((f"training/image_2/{image:06d}",), (name,), (split,), table)


def _read(root: Root, options: argparse.Namespace) -> Collection:
    drives = _drives(root)
    if len(drives) < 3:
        raise IngestError(
            f"{root.path}: mapping/ names {len(drives)} drives; train, val and test need one each at least"
        )
    split_of = _splits(drives)
    if not options.official_val:
        split_of = {image: split for image, split in split_of.items() if split != "val"}
    annotations = _annotations(root, split_of)
    if not options.official_val:
        annotations = hold_out(annotations, 2)
    return gather(root, annotations, options, modality="image", classes=CLASSES)


IMPORTERS = {
    "kitti": Importer(
        "KITTI distance (VTAB): the nearest vehicle's distance in four classes; val is the last 2 % of train",
        "training/image_2/, training/label_2/, and mapping/train_rand.txt and train_mapping.txt of devkit_object.zip",
        _read,
        __doc__,
        official_val.flags,
    )
}
