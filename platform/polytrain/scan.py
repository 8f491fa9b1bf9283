"""What a model is to see, and what came of it; and the plain way to do it: in this process.

`inference.run_scans` does the same on any number of machines, with the pieces that are here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from polytrain.data.decode import DecodeError
from polytrain.data.reading import Room
from polytrain.data.views import WHOLE, View
from polytrain.modalities import Geometry
from polytrain.secrecy import without_secrets

if TYPE_CHECKING:
    from polytrain.forward import Forward


CHUNK_BYTES = 16_000_000
"""Decoded media that a model is given at a time, at most."""


class Seen(Protocol):
    """What is asked of a scan's examples: `data.examples.Examples` answers it, and `predict.files.Files`."""

    def __len__(self) -> int: ...
    def name(self, example: int) -> str: ...
    def content(self, example: int) -> bytes | str: ...
    def clip(self, example: int) -> tuple[float | None, float | None]: ...
    def labels(self, examples: Sequence[int]) -> list[list[int]]: ...


@dataclass(frozen=True)
class Scan:
    """Examples of one modality that a model is to see."""

    key: str
    modality: str
    geometry: Geometry
    examples: Seen
    views: tuple[View, ...] = WHOLE
    tasks: tuple[str, ...] = ()
    """Whose logits are wanted; none: the features of the class token."""
    decode_time_limit_s: float = 30.0

    @property
    def example_bytes(self) -> int:
        """Bytes of one example, decoded."""
        return self.geometry.decoded_bytes * len(self.views)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what the model gives."""
        return self.tasks or ("features",)


@dataclass(eq=False)
class Scanned:
    """What became of some examples of a scan; which of them, is told by `ids` and `bad`."""

    key: str
    ids: np.ndarray  # [b] int64
    outputs: dict[str, np.ndarray]  # by task, or "features": [b, k] float32, the mean over an example's views
    labels: list[list[int]]
    bad: list[tuple[int, str, str]] = field(default_factory=list)  # id, path, reason


@dataclass(eq=False)
class Decoded:
    """Some examples of a scan as decoders give them."""

    ids: list[int]
    media: np.ndarray  # [b * views, *decoded_shape], an example's views one behind the other
    labels: list[list[int]]
    bad: list[tuple[int, str, str]]


def decoded(scan: Scan, examples: Sequence[int]) -> Decoded:
    """Those of the examples that can be decoded; the others are told in `bad`."""
    room = Room(scan.geometry, len(examples), len(scan.views))
    ids, bad = [], []
    for example in examples:
        try:
            room.decode(scan.examples, example, scan.views, scan.decode_time_limit_s)
        except DecodeError as error:
            bad.append((example, scan.examples.name(example), without_secrets(str(error))))
        else:
            ids.append(example)
    return Decoded(ids, room.filled, scan.examples.labels(ids), bad)


def means(
    forward: Forward, modality: str, media: np.ndarray, tasks: tuple[str, ...], examples: int
) -> dict[str, np.ndarray]:
    """Outputs of media [examples * views, *decoded_shape], [examples, k] float32 each, the mean over the views."""
    outputs = forward.outputs(modality, media, tasks)
    return {
        name: (value.unflatten(0, (examples, -1)).mean(1) if examples else value).numpy()
        for name, value in outputs.items()
    }


def run_here(forward: Forward, scans: Sequence[Scan], *, batch_size: int = 32) -> Iterator[Scanned]:
    """All examples of all scans in their order, up to `batch_size` at a time."""
    for scan in scans:
        count = max(1, min(batch_size, CHUNK_BYTES // scan.example_bytes))
        for first in range(0, len(scan.examples), count):
            some = decoded(scan, range(first, min(first + count, len(scan.examples))))
            outputs = means(forward, scan.modality, some.media, scan.tasks, len(some.ids))
            yield Scanned(scan.key, np.array(some.ids, np.int64), outputs, some.labels, some.bad)
