"""`jobs/prepare.py folder`: ROOT/{train,val,test}/<class>/<file>, or ROOT/<class>/<file>."""

from __future__ import annotations

import argparse
from collections import Counter

from polytrain.data import manifest, storage
from polytrain.data.importers.collection import Collection, Example, IngestError
from polytrain.data.importers.root import SUFFIXES
from polytrain.ingest import options as common
from polytrain.ingest.listing import check_root, files_below
from polytrain.ingest.preparing import prepare

HOLDS = "train/<class>/<file>"


def read_folder(root: str, modality: str) -> Collection:
    """ROOT/{train,val,test}/<class>/<file>, or ROOT/<class>/<file>, all of which is then training.

    Class folders are searched to any depth. Hidden files and files of another kind are counted in a note.
    """
    root = check_root(root, HOLDS)
    places = [path.split("/") for path in files_below(root)]
    folders = sorted({parts[0] for parts in places if len(parts) > 1})
    split_folders = [name for name in manifest.SPLITS if name in folders]
    if split_folders:
        if "train" not in folders:
            raise IngestError(f"{root}: has {' and '.join(split_folders)} but no train; there is nothing to train on")
        if strange := [name for name in folders if name not in manifest.SPLITS]:
            raise IngestError(f"{root}: {strange[0]!r} lies beside train; its name should be one of train, val, test")
    above = 1 if split_folders else 0  # folders above that of the class
    skipped: Counter[str] = Counter()
    examples = []
    for parts in places:
        if len(parts) < above + 2:
            continue
        name = parts[-1]
        suffix = f".{name.rpartition('.')[2].lower()}" if "." in name.lstrip(".") else ""
        if name.startswith("."):
            skipped["hidden"] += 1
        elif suffix not in SUFFIXES[modality]:
            skipped[suffix or "no suffix"] += 1
        else:
            path = storage.join(root, *parts)
            examples.append(Example(path, (parts[above],), parts[0] if split_folders else "train"))
    kinds = ", ".join(f"{count} {kind}" for kind, count in skipped.most_common())
    if not examples:
        found = f"; files of other kinds: {kinds}" if kinds else ""
        raise IngestError(
            f"{root}: no {modality} file below train/<class>/ or <class>/{found}. "
            f"Suffixes of {modality}: {' '.join(SUFFIXES[modality])}"
        )
    examples.sort(key=lambda example: manifest.SPLITS.index(example.split))
    note = (f"skipped {skipped.total()} hidden or foreign files: {kinds}",) if skipped else ()
    return Collection(modality, examples, notes=note)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", required=True, help="holds train/<class>/<file> (val, test) or <class>/<file>")
    common.add_modality(parser)
    common.add_flags(parser, splitting=True)


def run(options: argparse.Namespace) -> None:
    prepare(read_folder(options.root, options.modality), options, options.root)
