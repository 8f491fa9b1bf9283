"""ImageNet-1k (ILSVRC 2012 classification), https://image-net.org.

Official layouts that are accepted; ROOT holds train/ and val/, itself or in ILSVRC/Data/CLS-LOC/ (Kaggle's archive):

    train/<wnid>/<wnid>_<n>.JPEG           1000 class folders (n01440764 ...)
    val/<wnid>/ILSVRC2012_val_<n>.JPEG     sorted into class folders, or
    val/ILSVRC2012_val_<n>.JPEG            flat, with one of these beside it (in this order of preference):
        LOC_val_solution.csv                              Kaggle: ImageId,PredictionString
        imagenet_2012_validation_synset_labels.txt        line n is the wnid of image n
        ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt with meta.mat beside it (or in data/)

Classes are wnids in sorted order: index 0 to 999 as every published model numbers them. With LOC_synset_mapping.txt
in ROOT a class is called by its first word as well: "n01440764 tench".

Splits (PolyViT, appendix A): train is the first 99 % of the training images, val the last 1 %, test the official
validation set (the test set's labels are not public). Files are sorted by class, so first and last are meant in a
fixed shuffled order (SHA-256 of the path below ROOT's train/).
"""

from __future__ import annotations

import argparse
import io

from polytrain.data import storage
from polytrain.data.importers.annotations import lines, table
from polytrain.data.importers.collection import Collection, IngestError
from polytrain.data.importers.importer import Annotation, Importer, check_class_count, gather, hold_out
from polytrain.data.importers.root import Root

CLASSES = 1000
KAGGLE = "ILSVRC/Data/CLS-LOC/"
SYNSET_LABELS = "imagenet_2012_validation_synset_labels.txt"
GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
DEVKIT = "ILSVRC2012_devkit_t12/"


def _read(root: Root, options: argparse.Namespace) -> Collection:
    top = "" if root.first("train") else KAGGLE
    root.need("train", KAGGLE + "train")
    root.need(top + "val")
    wnids = root.folders(top + "train")
    check_class_count(wnids, CLASSES, root.join(top + "train"), "ImageNet-1k")
    names = _names(root, wnids)
    training = [
        Annotation((path,), named, ("train",), folder, name=path.removeprefix(top))
        for wnid in wnids
        for named, folder in [((names[wnid],), root.join(f"{top}train/{wnid}"))]
        for path in root.files(f"{top}train/{wnid}", "image")
    ]
    training = hold_out(training, 1)
    test = _validation(root, top + "val", names)
    return gather(root, [*training, *test], options, modality="image", classes=[names[wnid] for wnid in wnids])


def _names(root: Root, wnids: list[str]) -> dict[str, str]:
    mapping = root.first("LOC_synset_mapping.txt")
    words = {line.split()[0]: line for _, line in lines(mapping)} if mapping else {}
    return {wnid: words.get(wnid, wnid).split(",")[0] for wnid in wnids}


def _validation(root: Root, folder: str, names: dict[str, str]) -> list[Annotation]:
    if folders := root.folders(folder):
        check_class_count(folders, CLASSES, root.join(folder), "ImageNet-1k")
        labelled = [
            (path, wnid, root.join(folder), 0) for wnid in folders for path in root.files(f"{folder}/{wnid}", "image")
        ]
    else:
        labelled = [(f"{folder}/{image}", *rest) for image, *rest in _labels(root)]
    return [
        Annotation((path,), (names.get(wnid, wnid),), ("test",), where, line) for path, wnid, where, line in labelled
    ]


def _labels(root: Root) -> list[tuple[str, str, str, int]]:
    """(image, wnid, file, line) of the flat validation images."""
    if path := root.first("LOC_val_solution.csv"):
        rows = table(path, ("ImageId", "PredictionString"))
        return [(image, prediction.split(" ")[0], path, line) for line, (image, prediction) in rows]
    if path := root.first(SYNSET_LABELS, f"val/{SYNSET_LABELS}"):
        return [(f"ILSVRC2012_val_{line:08d}", wnid, path, line) for line, wnid in lines(path)]
    if path := root.first(DEVKIT + GROUND_TRUTH, GROUND_TRUTH):
        wnids = _devkit_wnids(storage.join(storage.parent(path), "meta.mat"))
        return [
            (f"ILSVRC2012_val_{line:08d}", wnids.get(number, f"ILSVRC2012_ID {number}"), path, line)
            for line, number in lines(path)
        ]
    raise IngestError(
        f"{root.join('val')}: has no class folders, and nothing says what its images show; one of these should lie in "
        f"{root.path}: LOC_val_solution.csv, {SYNSET_LABELS}, {DEVKIT}{GROUND_TRUTH} (with meta.mat)"
    )


def _devkit_wnids(path: str) -> dict[str, str]:
    """ILSVRC2012_ID -> wnid, from the development kit's table of synsets, a MATLAB file."""
    import scipy.io

    try:
        synsets = scipy.io.loadmat(io.BytesIO(storage.fetch(path)), squeeze_me=True)["synsets"]
        pairs = zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
        return {str(int(number)): str(wnid) for number, wnid in pairs}
    except OSError as error:
        raise IngestError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise IngestError(f"{path}: is not the development kit's meta.mat: {error}") from None


IMPORTERS = {
    "imagenet": Importer(
        "ImageNet-1k (ILSVRC 2012); val is the last 1 % of train, test the official validation set",
        "train/<wnid>/*.JPEG, and val/<wnid>/*.JPEG or val/*.JPEG with LOC_val_solution.csv, "
        f"{SYNSET_LABELS} or ILSVRC2012_devkit_t12/",
        _read,
        __doc__,
    )
}
