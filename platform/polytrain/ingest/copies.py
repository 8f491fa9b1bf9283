"""Files that are the same: one content under several names. A copy in train and in test would flatter the test."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from polytrain.data import storage
from polytrain.data.importers.collection import Collection, Example, IngestError
from polytrain.progress import Progress, ticking

SHOWN = 3
_END = 16384
_THREADS = 16


def copies(places: Sequence[str]) -> dict[str, str]:
    """Every file that has the content of an earlier one -> the first such. Empty files are nobody's copies.

    Only files of one size are opened, and read whole only where their ends (16 KiB each) are the same.
    """
    places = list(dict.fromkeys(places))
    order = {place: number for number, place in enumerate(places)}
    with (
        Progress("looking for copies", len(places), "files") as progress,
        ticking(progress),
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        identities = dict(_identities(places))
        alike = [group for group in _grouped(places, lambda place: identities.get(place)) if identities[group[0]][0]]
        progress.to(len(places) - sum(map(len, alike)), earlier=True)
        for part in (_ends, _whole):
            several = [place for group in alike for place in group]
            digests = {}
            for place, digest in zip(several, pool.map(part, several), strict=True):
                digests[place] = digest
                if part is _ends:
                    progress.add()
                else:
                    progress.tick()
            alike = [
                same
                for group in alike
                for same in _grouped(group, lambda place, of=digests: of[place])
                if len(same) > 1
            ]
    return {
        place: first
        for group in alike
        for first in [min(group, key=order.__getitem__)]
        for place in group
        if place != first
    }


def _grouped(places: Iterable[str], key: Callable[[str], Hashable]) -> list[list[str]]:
    """Places of one key, where there are several of it; None is no key."""
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for place in places:
        if (value := key(place)) is not None:
            groups[value].append(place)
    return [group for group in groups.values() if len(group) > 1]


def _identities(places: Sequence[str]) -> Iterable[tuple[str, tuple[int]]]:
    """(place, (size,)) of every file that is there."""
    remote = [place for place in places if storage.is_remote(place)]
    for place in places:
        if not storage.is_remote(place):
            try:
                yield place, (os.stat(storage.local_path(place)).st_size,)
            except OSError:
                continue  # told where it is read
    folders: dict[str, set[str]] = defaultdict(set)
    for place in remote:
        folders[storage.parent(place)].add(place)
    for folder, names in folders.items():  # one listing a folder: a request a file would take hours
        for path, size in storage.files(folder):
            place = storage.join(folder, *path.split("/"))
            if place in names:
                yield place, (size,)


def _ends(place: str) -> bytes | None:
    try:
        with storage.open_file(place) as file:
            start = file.read(_END)
            file.seek(max(_END, file.size() - _END))
            return hashlib.sha256(start + file.read(_END)).digest()
    except OSError:
        return None


def _whole(place: str) -> bytes | None:
    digest = hashlib.sha256()
    try:
        with storage.open_file(place) as file:
            if file.size() <= 2 * _END:
                return b""  # its ends were all of it
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        return None
    return digest.digest()


def without_overlap(collection: Collection, overlap: str) -> tuple[Collection, dict[str, str]]:
    """The collection, and `copies` of its files, of which none is in train and in val or test.

    `overlap` "fail" raises IngestError where one is, naming both; "skip" leaves such files out of train; "ignore" does
    not look.
    """
    if overlap == "ignore":
        return collection, {}
    same = copies([example.path for example in collection.examples if example.data is None])
    trained: dict[str, Example] = {}
    held_out: dict[str, Example] = {}
    for example in collection.examples:
        (trained if example.split == "train" else held_out).setdefault(same.get(example.path, example.path), example)
    both = [first for first in held_out if first in trained]
    if both and overlap == "fail":
        shown = "".join(
            f"\n  {held_out[first].path} ({held_out[first].split}) is the same file as {trained[first].path} (train)"
            for first in both[:SHOWN]
        )
        more = f"\n  and {len(both) - SHOWN} more" if len(both) > SHOWN else ""
        raise IngestError(
            f"the splits overlap, and a test on what was trained on says nothing; take the files out of one of them, "
            f"or --overlap skip takes them out of train:{shown}{more}"
        )
    leave = set(both)
    kept = [e for e in collection.examples if e.split != "train" or same.get(e.path, e.path) not in leave]
    notes = list(collection.notes)
    if left := len(collection.examples) - len(kept):
        notes.append(f"left {left} training files out that are in val or test as well: --overlap skip")
    present = {e.path for e in kept}
    if pairs := [(copy, first) for copy, first in same.items() if copy in present and first in present]:
        copy, first = pairs[0]
        notes.append(f"{len(pairs)} files are copies of others, all kept in one split: {copy} is {first}")
    return replace(collection, examples=kept, notes=tuple(notes)), same
