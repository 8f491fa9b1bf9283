"""Validation and test examples split off a collection's training examples where it brings none of its own."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from polytrain.data.importers.collection import Example, IngestError


def check_fractions(fractions: Mapping[str, float]) -> None:
    if any(not 0 <= share < 1 for share in fractions.values()) or sum(fractions.values()) >= 1:
        raise IngestError(f"fractions {fractions}: each should be 0 or more, and together they should be below 1")


def split_off(
    examples: Sequence[Example],
    fractions: Mapping[str, float],
    seed: int,
    copies: Mapping[str, str] | None = None,
) -> list[Example]:
    """Moves a fraction of each class's training examples to every split that has none yet.

    Which ones is decided by a hash of seed and file name, so a collection that grows keeps most of its split. A
    class keeps at least one training example and gives at least one where it has three or more; an example of
    several classes counts for its rarest. `copies` (file -> the first of its content) stay with their originals.
    """
    copies = copies or {}
    missing = {name: share for name, share in fractions.items() if share and all(e.split != name for e in examples)}
    training = [index for index, example in enumerate(examples) if example.split == "train"]
    originals = [index for index in training if examples[index].path not in copies]
    frequency = Counter(name for index in originals for name in examples[index].classes)
    groups = defaultdict(list)
    for index in originals:
        rarest = min(examples[index].classes, key=lambda name: (frequency[name], name), default=None)
        groups[rarest].append(index)
    result = list(examples)
    for name, members in groups.items():
        key = f"{seed}/{name}/"
        members.sort(key=lambda i: hashlib.sha256((key + os.path.basename(examples[i].path)).encode()).digest())
        start, size = 0, len(members)
        for split, share in missing.items():
            count = max(round(share * size), 1 if size >= 3 else 0)
            count = min(count, size - start - 1)
            for index in members[start : start + count]:
                result[index] = replace(examples[index], split=split)
            start += count
    if copies:
        split_of = {examples[index].path: result[index].split for index in originals}
        for index in training:
            original = copies.get(examples[index].path)
            if original in split_of:
                result[index] = replace(examples[index], split=split_of[original])
    return result
