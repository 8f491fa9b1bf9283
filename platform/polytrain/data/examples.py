"""The examples of one split as decode workers look them up: where the media lie, which clip, which classes.

Paths stay as the manifest has them and are joined when asked for. A table too large to be sent to every machine is a
file that this machine's processes map (data/mapped_rows.py): sent is only its name, and a machine that has no such
file makes it from the manifest.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from polytrain.data import manifest as manifests
from polytrain.data import storage
from polytrain.data.group_cache import GroupCache
from polytrain.data.manifest import SPLITS, Manifest, ManifestError
from polytrain.data.packed import PackedSplit, packed_splits

if TYPE_CHECKING:
    from polytrain.plan import Minibatch, Plan

SENT_BYTES = 64_000_000
"""A table up to this size is sent as it is; a larger one is mapped from a file on each machine."""

MINIBATCHES_AHEAD = 16
"""Minibatches that one CPU may be ahead of the oldest one in work: a packed collection's
read tasks hold eight, and two are at hand."""

ALONE_LIMIT = 64
"""Row groups kept for a reader that follows no plan."""


class Examples:
    """One split of a manifest; example i is its i-th row in the file's order."""

    def __init__(self, manifest: Manifest, split: str, packed: PackedSplit | None = None) -> None:
        self.uri, self.digest, self.split = manifest.uri, manifest.digest, split
        self.packed = packed
        self.table = manifest.split(split).drop_columns(["split"])
        self._mapped = manifest.mapped is not None
        self._cache: GroupCache | None = None

    def __len__(self) -> int:
        return len(self.table)

    def __getstate__(self) -> dict[str, Any]:
        sent = self.__dict__ | {"_cache": None}
        sent.pop("_columns", None)
        return sent | {"table": None} if self._mapped or self.table.nbytes > SENT_BYTES else sent

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if self.table is None:
            manifest = manifests.read(self.uri)
            if manifest.digest != self.digest:
                raise ManifestError(f"{self.uri}: is not what it was when the run began")
            self.table = manifest.split(self.split).drop_columns(["split"])

    def name(self, example: int) -> str:
        """What a list of bad media calls an example."""
        return self._value("path", example) if self.packed else self.location(example) or f"inline example {example}"

    def location(self, example: int) -> str | None:
        """The absolute path or URI of its file, None where the media are stored inline."""
        path = None if self.packed else self._value("path", example)
        return path and manifests.location(self.uri, path)

    def file(self, example: int) -> str | None:
        """The file that has to be there for an example: its own, or the shard it is packed in; None if inline."""
        if self.packed is None:
            return self.location(example)
        return self.packed.uri(self.packed.shard(self.packed.find(example)[0])[0])

    def content(self, example: int) -> bytes | str:
        """Its media: the file's bytes, or the path of a local file. Raises OSError where they can't be had."""
        if self.packed is not None:
            return self._groups().content(example)
        inline = self._value("data", example)
        if inline is not None:
            return inline
        location = self.location(example)
        local = storage.local_path(location)
        return storage.fetch(location) if local is None else local

    def clip(self, example: int) -> tuple[float | None, float | None]:
        """Where its clip begins and ends within the file, seconds; None: at the file's ends."""
        return self._value("start_s", example), self._value("end_s", example)

    def labels(self, examples: Sequence[int]) -> list[list[int]]:
        """The classes of each."""
        if "labels" in self._columns:
            return [self._value("labels", example) for example in examples]
        return [[self._value("label", example)] for example in examples]

    def _value(self, column: str, example: int) -> Any:
        values = self._columns.get(column)
        return None if values is None else values[example].as_py()

    @functools.cached_property
    def _columns(self) -> dict[str, pa.ChunkedArray]:
        return {name: self.table[name] for name in self.table.column_names}

    # --- packed ---

    def expect(self, plan: Plan, minibatch: Minibatch) -> None:
        """Begin to fetch the row groups that a minibatch needs, and as much of the next window as it is time for."""
        if self.packed is None:
            return
        tag = minibatch.tag
        cache = self._groups(plan, tag.task)
        if tag.phase != "train":
            groups = np.searchsorted(self.packed.starts, minibatch.ids, side="right") - 1
            if len(groups):
                cache.fetch_ahead(range(int(groups[0]), min(int(groups[-1]) + 3, len(self.packed.sizes))))
            return
        position = int(minibatch.positions[-1])
        window = plan.window(tag.task, position)
        upcoming = plan.window(tag.task, window.start + window.size).groups
        # Spread over the window: at its end the next one lies here.
        due = -(-len(upcoming) * (position + 1 - window.start) // window.size)
        cache.fetch_ahead([*window.groups.tolist(), *upcoming[:due].tolist()])

    def _groups(self, plan: Plan | None = None, task: int = 0) -> GroupCache:
        if self._cache is None:
            limit, name = ALONE_LIMIT, f"groups-{self.digest[:16]}"
            if plan is not None:
                planned = plan.tasks[task]
                ahead = MINIBATCHES_AHEAD * (os.cpu_count() or 1) * planned.batch_size
                window = planned.groups.window if planned.groups else 1
                limit = 2 * window + 8 + int(ahead / self.packed.sizes.mean())
                name += f"-{plan.walk_key(task):016x}"
            self._cache = GroupCache(self.packed, name, limit)
        return self._cache

    def close(self) -> None:
        """Let go of row groups."""
        if self._cache is not None:
            self._cache.close()
            self._cache = None


def examples_of(manifest: Manifest) -> dict[str, Examples]:
    """All splits. Raises ManifestError where a packed manifest does not fit its shards."""
    packed = packed_splits(manifest) or {}
    return {split: Examples(manifest, split, packed.get(split)) for split in SPLITS}
