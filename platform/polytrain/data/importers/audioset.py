"""AudioSet, https://research.google.com/audioset/download.html.

Official layout: three tables of segments and the class list, in ROOT:

    balanced_train_segments.csv, unbalanced_train_segments.csv, eval_segments.csv
        three lines that begin with '#', then:  --PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"
    class_labels_indices.csv                    index,mid,display_name

There are no official media. What people's downloaders make of them is accepted: one file a segment, already cut,
named <YTID>, Y<YTID>, <YTID>_<start>_<end> (seconds, six digits each) or <YTID>_<start>_<end> (milliseconds), in
folders of ROOT, ROOT/audio or ROOT/audios that are called after their table (balanced_train*, bal_train*;
unbalanced_train*, unbal_train*: all parts; eval*), or all of them in one of these three folders. Video files do as
well: their sound track is read.

--subset is what is trained on: balanced (Mini-AudioSet, the default), unbalanced, full (both), or 500k: MBT's
"AS-500k", 500,000 segments of full that are drawn by --seed without replacement, with a weight that is the sum over a
segment's classes of 1 / (the class's frequency). MBT publishes no list and no exact rule; this one is the weight that
AST samples by. It is drawn from what is on disk, so it is of full size while enough is there. The evaluation set is
val and test, as in the reference code. Multi-label; classes are in class_labels_indices.csv's order.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from polytrain.data.importers.annotations import lines, number, records, table
from polytrain.data.importers.collection import Collection, IngestError
from polytrain.data.importers.importer import Annotation, Importer, check_class_count, gather
from polytrain.data.importers.root import Root

CLASSES = 527
HEADER = "# YTID, start_seconds, end_seconds, positive_labels"
TABLES = {
    "balanced": ("balanced_train_segments.csv", ("balanced_train", "bal_train")),
    "unbalanced": ("unbalanced_train_segments.csv", ("unbalanced_train", "unbal_train")),
    "eval": ("eval_segments.csv", ("eval",)),
}
SUBSETS = {
    "balanced": ("balanced",),
    "unbalanced": ("unbalanced",),
    "full": ("balanced", "unbalanced"),
    "500k": ("balanced", "unbalanced"),
}
DRAWN = 500_000


def _class_names(path: str) -> dict[str, str]:
    """mid -> display name, in the order of the index."""
    rows = [(number(index, path, line, "class index"), mid, name) for line, (index, mid, name) in
            table(path, ("index", "mid", "display_name"))]  # fmt: skip
    check_class_count({mid for _, mid, _ in rows}, CLASSES, path, "AudioSet")
    return {mid: name for _, mid, name in sorted(rows)}


def _check_header(path: str) -> int | None:
    """The number of segments that the header promises; IngestError where it is no header of AudioSet's."""
    first = [line for _, line in islice(lines(path), 3)]
    if len(first) < 3 or not all(line.startswith("#") for line in first) or first[2] != HEADER:
        raise IngestError(
            f"{path}, line 1: is {(first or [''])[0][:80]!r}; AudioSet's tables begin with three lines of header, "
            f"the third of them {HEADER!r}"
        )
    promised = re.search(r"num_segs=(\d+)", first[1])
    return int(promised[1]) if promised else None


def _annotations(root: Root, which: str, mids: dict[str, str]) -> Iterator[Annotation]:
    name, prefixes = TABLES[which]
    path = root.need(name)
    promised = _check_header(path)
    folders = _folders(root, prefixes)
    at = {stem: folder for folder in folders for stem in root.stems(folder, "audio")}
    timed = any(len(stem) > 12 for stem in at)  # so long a name has more than an id of 11 characters and a Y
    splits = ("val", "test") if which == "eval" else ("train",)
    labels: dict[str, tuple[str, ...]] = {}
    count = 0
    row = 'YTID, start, end, "mid,mid,..."'
    for line, (video, start, end, positive) in records(path, 4, row, skip_lines=3):
        count += 1
        if positive not in labels:
            listed = positive.split(",")
            if unknown := [mid for mid in listed if mid not in mids]:
                raise IngestError(f"{path}, line {line}: class {unknown[0]!r} is not in class_labels_indices.csv")
            labels[positive] = tuple(mids[mid] for mid in listed)
        first, last = number(start, path, line, "time in seconds"), number(end, path, line, "time in seconds")
        stems = (video, f"Y{video}")
        if timed:
            stems += (
                f"{video}_{first:06.0f}_{last:06.0f}",
                f"{video}_{first * 1000:.0f}_{last * 1000:.0f}",
            )
        stem = next((stem for stem in stems if stem in at), video)
        folder = at.get(stem, folders[0])
        paths = (f"{folder}/{stem}" if folder else stem,)
        yield Annotation(paths, labels[positive], splits, path, line, video)
    if promised is not None and count != promised:
        raise IngestError(
            f"{path}: has {count} segments, its header says num_segs={promised}; it is cut short or edited"
        )


def _folders(root: Root, prefixes: tuple[str, ...]) -> list[str]:
    """The folders that may hold a table's media, relative to the root."""
    tops = [top for top in ("", "audio", "audios") if not top or root.first(top)]
    named = [os.path.join(top, name) for top in tops for name in root.folders(top) if name.lower().startswith(prefixes)]
    return named or [next((top for top in tops if root.stems(top, "audio")), "")]


def _read(root: Root, options: argparse.Namespace) -> Collection:
    mids = _class_names(root.need("class_labels_indices.csv"))
    annotations = (a for which in (*SUBSETS[options.subset], "eval") for a in _annotations(root, which, mids))
    found = gather(root, annotations, options, modality="audio", classes=list(mids.values()), multi_label=True)
    return draw(found, DRAWN, options.seed) if options.subset == "500k" else found


def draw(collection: Collection, size: int, seed: int) -> Collection:
    """`size` training examples, drawn by inverse class frequency; the other splits are left as they are.

    Weighted sampling without replacement is a sort (Efraimidis and Spirakis, 2006): the largest log(u) / weight win.
    u is a hash of seed and video, so a file more or less changes the others little.
    """
    training = [index for index, e in enumerate(collection.examples) if e.split == "train"]
    frequency = Counter(name for index in training for name in collection.examples[index].classes)

    weights = {}  # far fewer sets of classes than segments

    def key(index: int) -> float:
        example = collection.examples[index]
        if example.classes not in weights:
            weights[example.classes] = sum(1 / frequency[name] for name in example.classes)
        digest = hashlib.blake2b(f"{seed}/{_video(example.path)}".encode(), digest_size=8).digest()
        return math.log((int.from_bytes(digest) + 1) / 2**64) / weights[example.classes]

    drawn = set(heapq.nlargest(size, training, key=key))
    examples = [e for index, e in enumerate(collection.examples) if e.split != "train" or index in drawn]
    note = f"drawn: {len(drawn)} of {len(training)} training segments, seed {seed}"
    return replace(collection, examples=examples, notes=(*collection.notes, note))


def _video(path: str) -> str:
    """The YouTube id (11 characters) in the file's name."""
    stem = os.path.splitext(path.partition("?")[0].rpartition("/")[2])[0]  # a URI may have a query
    return stem[1:] if len(stem) == 12 and stem[0] == "Y" else stem[:11]


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--subset", choices=list(SUBSETS), default="balanced", help="what is trained on (balanced)")
    parser.add_argument("--seed", type=int, default=0, help="which segments --subset 500k draws (0)")


IMPORTERS = {
    "audioset": Importer(
        "AudioSet: balanced, unbalanced, full or 500k training set; the evaluation set is val and test",
        "balanced_train_segments.csv, unbalanced_train_segments.csv, eval_segments.csv, class_labels_indices.csv, and "
        "folders of media such as balanced_train_segments/<YTID>.wav",
        _read,
        __doc__,
        _flags,
    )
}
