"""What a decode worker does with its part of a plan: look up examples, decode them, pack them into rows.

A row is a one-row table that holds one share of a minibatch, several small ones, or a chunk of a large one, each under
its tag. `unpacked` is the way back. Neither Ray nor torch is needed here.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass

import numpy as np
import pyarrow as pa

from polytrain.data.augmentation import AUGMENTATIONS, Augmentation
from polytrain.data.decode import DecodeError, decode
from polytrain.data.examples import Examples
from polytrain.data.views import WHOLE, View
from polytrain.modalities import Geometry
from polytrain.plan import Minibatch, Plan, Tag, Timeline

ROW_BYTES = 40_000_000
"""A row holds this much at most: eight clips of 32 frames at 224 x 224 still are one."""

TASK_BYTES = 128_000_000
"""A read task makes this much at most, for it may have to be done again."""

STRETCH_TASKS = 1000
"""Read tasks of one execution. A task costs its driver about a millisecond and two kilobytes before the first row."""

REPLACEMENTS = 50
"""How many of the next examples are tried in place of one that can't be decoded."""


@dataclass(frozen=True)
class TaskMedia:
    """Where a task's examples lie, by split."""

    geometry: Geometry
    splits: Mapping[str, Examples]
    augmentation: Augmentation = AUGMENTATIONS["none"]
    """What is drawn for training examples; validation and test see them as they are."""
    test_views: tuple[View, ...] = WHOLE
    """What the final test sees of each example; validation sees one view."""

    def views(self, phase: str, seed: np.uint64 | None) -> tuple[View, ...]:
        """What is shown of an example; `seed` is its seed in training, None in evaluation."""
        if seed is None:
            return self.test_views if phase == "test" else WHOLE
        return (self.augmentation.view(self.geometry, seed),)


@dataclass(frozen=True)
class Flow:
    """What each stream of a run may use, and how large its rows and read tasks are therefore."""

    cpus: float = 1.0
    """That decode for it."""
    memory: int = 1_000_000_000
    """Bytes of decoded minibatches that may wait in it."""

    @classmethod
    def shared(cls, streams: int, *, cpus: float, memory: int) -> Flow:
        """One of so many streams' part."""
        return cls(cpus / streams, memory // streams)

    @property
    def processes(self) -> int:
        """That decode for a stream at a time, one read task each."""
        return max(1, int(self.cpus))

    @property
    def cpus_each(self) -> float:
        """What Ray is told that one of them takes: rounded down, or the last would find no place."""
        return math.floor(1e4 * self.cpus / self.processes) / 1e4

    @property
    def row_bytes(self) -> int:
        """Small shares travel together in a row of this size, and a larger share in several.

        A row costs some 15 ms on its way, whatever it holds. But for every process Ray takes two rows to be waiting,
        and half of the memory is to be left for those that are.
        """
        return max(1, min(ROW_BYTES, self.memory // (4 * self.processes)))

    @property
    def task_bytes(self) -> int:
        """A read task's: rows come in order, so what one process makes waits until those before it are taken."""
        return max(1, min(TASK_BYTES, self.memory // (2 * self.processes)))


@dataclass(frozen=True)
class StreamSource:
    """Everything a read task needs; lives once in the object store, whatever the number of tasks."""

    plan: Plan
    media: tuple[TaskMedia, ...]  # by task id
    decode_time_limit_s: float
    flow: Flow = Flow()
    stretch_tasks: int = STRETCH_TASKS

    @functools.cached_property
    def _timelines(self) -> dict[tuple[str, int], Timeline]:
        return {}

    def timeline(self, modality: str, first_step: int) -> Timeline:
        key = (modality, first_step)
        if key not in self._timelines:
            self._timelines[key] = self.plan.timeline(modality, first_step)
        return self._timelines[key]

    def share_bytes(self, task: int, phase: str, workers: int) -> int:
        """Bytes of the largest share of a task's minibatch in a phase."""
        media = self.media[task]
        views = len(media.test_views) if phase == "test" else 1
        return media.geometry.decoded_bytes * views * self.plan.largest_share(task, workers, phase)

    def chunks(self, task: int, phase: str, workers: int) -> int:
        """Rows of a share: the same for all shares of a task in a phase, or rows would not deal out evenly.

        An example is never cut, so a row may hold more than `Flow.row_bytes` where one example's views do.
        """
        largest = self.plan.largest_share(task, workers, phase)
        return max(1, min(largest, -(-self.share_bytes(task, phase, workers) // self.flow.row_bytes)))


@dataclass(eq=False)
class Piece:
    """A share of a minibatch, or one chunk of it, as a decode worker made it."""

    tag: Tag
    chunk: int
    ids: list[int]  # as decoded: replacements in place of what was bad
    labels: list[list[int]]
    media: np.ndarray  # [b * views, *decoded_shape], an example's views one behind the other
    bad: list[tuple[int, str, str]]  # id, path, reason


def read_minibatches(
    source: StreamSource, modality: str, first_step: int, first: int, last: int, workers: int
) -> Iterator[pa.Table]:
    """Decode minibatches first..last-1 of a timeline and yield one-row tables, one for each worker in turn.

    A row holds as many consecutive minibatches' shares as `Flow.row_bytes` takes, or one chunk of one share.
    """
    timeline = source.timeline(modality, first_step)
    waiting: list[list[Piece]] = [[] for _ in range(workers)]
    size = 0
    for index in range(first, last):
        minibatch = timeline[index]
        source.media[minibatch.tag.task].splits[minibatch.tag.phase].expect(source.plan, minibatch)
        of_task = minibatch.tag.task, minibatch.tag.phase, workers
        chunks, needed = source.chunks(*of_task), source.share_bytes(*of_task)
        if waiting[0] and size + needed > source.flow.row_bytes:
            yield from map(_row, waiting)
            waiting, size = [[] for _ in range(workers)], 0
        shares = [source.plan.share(minibatch, rank, workers) for rank in range(workers)]
        for chunk in range(chunks):
            pieces = [read_chunk(source, minibatch, np.array_split(share, chunks)[chunk], chunk) for share in shares]
            if chunks > 1:
                yield from (_row([piece]) for piece in pieces)
            else:
                for of_worker, piece in zip(waiting, pieces, strict=True):
                    of_worker.append(piece)
                size += needed
    if waiting[0]:
        yield from map(_row, waiting)


def read_chunk(source: StreamSource, minibatch: Minibatch, indices: np.ndarray, chunk: int) -> Piece:
    """The examples of a minibatch at `indices`, decoded.

    What can't be decoded is replaced by the walk's next example in training (and is missing if none of the next
    `REPLACEMENTS` can be decoded either) and left out in evaluation; its id and the reason are told.
    """
    tag, media = minibatch.tag, source.media[minibatch.tag.task]
    examples = media.splits[tag.phase]
    room = Room(media.geometry, len(indices), len(media.test_views) if tag.phase == "test" else 1)
    used: list[int] = []
    bad: dict[int, str] = {}
    for index in indices:
        views = media.views(tag.phase, None if minibatch.seeds is None else minibatch.seeds[index])
        for example in _candidates(source.plan, minibatch, int(index)):
            if example in bad:
                continue
            try:
                room.decode(examples, example, views, source.decode_time_limit_s)
            except DecodeError as error:
                bad[example] = str(error)
            else:
                used.append(example)
                break
    return Piece(
        tag=tag,
        chunk=chunk,
        ids=used,
        labels=examples.labels(used),
        media=room.filled,
        bad=[(example, examples.name(example), reason) for example, reason in bad.items()],
    )


def _candidates(plan: Plan, minibatch: Minibatch, index: int) -> Iterator[int]:
    """The example itself, and in training those that may stand in for it."""
    yield int(minibatch.ids[index])
    if minibatch.seeds is not None:
        yield from plan.replacements(minibatch.tag.task, int(minibatch.positions[index]), REPLACEMENTS).tolist()


class Room:
    """Memory for the views of some examples, decoded where they will stay: nothing is put together afterwards."""

    def __init__(self, geometry: Geometry, examples: int, views: int) -> None:
        self._geometry, self._views, self._taken = geometry, views, 0
        self._media = np.empty((examples * views, *geometry.decoded_shape), geometry.decoded_dtype)

    def decode(self, examples: Examples, example: int, views: tuple[View, ...], time_limit_s: float) -> None:
        """Put an example's views behind the others. Raises DecodeError, and the place stays free."""
        place = self._media[self._taken : self._taken + self._views]
        decode_example(self._geometry, examples, example, views, time_limit_s, out=place)
        self._taken += self._views

    @property
    def filled(self) -> np.ndarray:
        """[examples so far * views, *decoded_shape], an example's views one behind the other."""
        return self._media[: self._taken]


def decode_example(
    geometry: Geometry,
    examples: Examples,
    example: int,
    views: tuple[View, ...],
    time_limit_s: float,
    *,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """The views of an example, [views, *decoded_shape]. Raises DecodeError for whatever is wrong with it."""
    try:
        source = examples.content(example)
    except FileNotFoundError:
        raise DecodeError("no such file") from None
    except OSError as error:  # what stays out of reach is a reason like any other: it names tries and answer
        raise DecodeError(str(error)) from None
    start_s, end_s = examples.clip(example)
    return decode(geometry, source, views, start_s=start_s, end_s=end_s, time_limit_s=time_limit_s, out=out)


def _row(pieces: list[Piece]) -> pa.Table:
    """One row. The media are one binary value: Arrow copies it into shared memory, and nobody copies it after."""
    parts = [piece.media.reshape(-1).view(np.uint8) for piece in pieces]
    media = parts[0] if len(parts) == 1 else np.concatenate(parts)
    about = [
        [*astuple(piece.tag), piece.chunk, piece.ids, piece.labels, piece.media.nbytes, piece.bad] for piece in pieces
    ]
    return pa.table({"about": [json.dumps(about)], "media": binary_value(media)})


def unpacked(row: pa.Table, source: StreamSource) -> Iterator[Piece]:
    """The pieces of a row; their media are views into it."""
    content = binary(row["media"])
    offset = 0
    for *tag, chunk, ids, labels, size, bad in json.loads(row["about"][0].as_py()):
        media = source.media[tag[2]]
        array = np.frombuffer(content, np.uint8, size, offset).view(media.geometry.decoded_dtype)
        offset += size
        shaped = array.reshape(-1, *media.geometry.decoded_shape)
        yield Piece(Tag(*tag), chunk, ids, labels, shaped, [tuple(entry) for entry in bad])


def binary_value(array: np.ndarray) -> pa.Array:
    """An array's bytes as one binary value: Ray copies it into shared memory, and nobody copies it after."""
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    ends = pa.py_buffer(np.array([0, content.nbytes], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(content)])


def binary(column: pa.ChunkedArray) -> pa.Buffer:
    """The bytes of a column's one value where they lie: `column[0].as_buffer()` would copy them."""
    (value,) = column.chunks
    begin, end = np.frombuffer(value.buffers()[1], np.int64, 2, 8 * value.offset).tolist()
    return value.buffers()[2].slice(begin, end - begin)
