"""What a frozen model makes of a split's examples, kept on disk in parts that are only ever added.

An example's features do not change: a probe that was stopped goes on, and one of other rates or heads finds what an
earlier one computed. A folder belongs to one split of one manifest as one model sees it (`Identity`). Media that can't
be decoded are tried again by every probe.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from polytrain.data.examples import Examples

VERSION = 1
"""Raise it when decoding or preprocessing changes: nothing that is on disk counts any more."""

PART_BYTES, PART_S = 64_000_000, 30.0
"""A part is written when it has this size or age: a probe that is killed loses no more."""


@dataclass(frozen=True)
class Identity:
    """What makes two features of an example the same."""

    trunk: str  # `Trunk.digest`
    precision: str
    manifest: str  # digest
    split: str
    views: str  # of an example; its features are their mean, and a linear head's logits then the mean of theirs

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps([VERSION, asdict(self)], sort_keys=True).encode()).hexdigest()[:16]


@dataclass(eq=False)
class Features:
    """Features of some of a split's examples."""

    size: int
    """Examples of the split."""
    width: int
    bad: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Examples that can't be decoded: path and reason."""
    seconds: float = 0.0
    """What all of them cost."""

    def __post_init__(self) -> None:
        self._row = np.full(self.size, -1, np.int64)
        self._values = np.empty((0, self.width), np.float32)
        self._new: list[np.ndarray] = []
        self._count = 0

    def add(
        self, ids: np.ndarray, values: np.ndarray, bad: Iterable[tuple[int, str, str]] = (), seconds: float = 0.0
    ) -> None:
        """Features [b, width] of examples; what is known already stays."""
        new = self._row[ids] < 0
        self._row[ids[new]] = self._count + np.arange(np.count_nonzero(new))
        self._new.append(np.asarray(values, np.float32)[new])
        self._count += len(self._new[-1])
        self.bad |= {example: (path, reason) for example, path, reason in bad}
        self.seconds += seconds

    def missing(self, ids: np.ndarray) -> np.ndarray:
        """Those of which nothing is known, ascending, each once."""
        unknown = np.unique(ids[self._row[ids] < 0])
        return unknown[~np.isin(unknown, list(self.bad))] if self.bad else unknown

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Where in `values` they are; -1 for those without features."""
        return self._row[ids]

    @property
    def known(self) -> np.ndarray:
        """The ids of the examples that have features, ascending."""
        return np.flatnonzero(self._row >= 0)

    def __len__(self) -> int:
        return self._count

    @property
    def values(self) -> np.ndarray:
        """[n, width] float32."""
        if self._new:
            self._values = np.concatenate([self._values, *self._new])
            self._new = []
        return self._values


class Store:
    """The features of one identity, below `root`."""

    def __init__(self, root: Path, identity: Identity) -> None:
        self.folder, self.identity = root / identity.digest, identity
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._seconds, self._since = 0.0, time.monotonic()

    def load(self, size: int, width: int) -> Features:
        """What is there; a part that was torn does not count and is removed."""
        features = Features(size, width)
        for file in sorted(self.folder.glob("part-*.safetensors")):
            try:
                with safe_open(file, "numpy") as part:
                    about = json.loads(part.metadata()["about"])
                    features.add(part.get_tensor("ids"), part.get_tensor("features"), seconds=about["seconds"])
            except (SafetensorError, OSError, TypeError, KeyError, ValueError, IndexError):
                with contextlib.suppress(OSError):
                    file.unlink()
        return features

    def add(self, ids: np.ndarray, values: np.ndarray, seconds: float) -> None:
        """Take over what was computed in `seconds`; on disk it is in half a minute, or after `close`."""
        self._waiting.append((ids, values))
        self._seconds += seconds
        waiting = sum(values.nbytes for _, values in self._waiting)
        if waiting >= PART_BYTES or time.monotonic() - self._since >= PART_S:
            self.close()

    def close(self) -> None:
        """Write what waits."""
        self._since = time.monotonic()
        if not self._waiting:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        about = self.folder / "about.json"
        if not about.exists():
            about.write_text(json.dumps(asdict(self.identity), indent=1))
        tensors = {
            "ids": np.concatenate([ids for ids, _ in self._waiting]).astype(np.int64),
            "features": np.concatenate([values for _, values in self._waiting]).astype(np.float32),
        }
        # Of this process alone: two probes may compute the same at a time, and both keep it.
        name = f"part-{time.time_ns()}-{os.getpid()}"
        partial = self.folder / f".{name}"
        save_file(tensors, partial, {"about": json.dumps({"seconds": self._seconds})})
        partial.rename(self.folder / f"{name}.safetensors")
        self._waiting, self._seconds = [], 0.0


@dataclass(frozen=True, eq=False)
class Selected:
    """Some examples of a split, as `inference.Scan` wants them: number i is the i-th of `ids`."""

    examples: Examples
    ids: np.ndarray  # [n] int64

    def __len__(self) -> int:
        return len(self.ids)

    def content(self, number: int) -> bytes | str:
        return self.examples.content(int(self.ids[number]))

    def clip(self, number: int) -> tuple[float | None, float | None]:
        return self.examples.clip(int(self.ids[number]))

    def name(self, number: int) -> str:
        return self.examples.name(int(self.ids[number]))

    def labels(self, numbers: Sequence[int]) -> list[list[int]]:
        return self.examples.labels([int(self.ids[number]) for number in numbers])
