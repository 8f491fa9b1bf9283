"""From numbers to media: one Ray Data stream a modality, whose source is the plan itself.

A read task is told "minibatches i..j of this modality": it asks the plan for the examples, decodes them and yields one
row a share (or a few, for large clips). Rows carry their tag, and the consumer refuses a minibatch that is not the
one it expects. Read tasks never import torch: a decode worker starts two seconds sooner and is 700 MB lighter.

The driver makes a `StreamSource` and hands `Streams` to the trainer; Ray Train calls `Streams.configure` when rank 0
asks for a stream, and each worker wraps its iterator in a `Stream`.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import ray
from ray.data import DataIterator, ExecutionResources
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.block import BlockMetadata
from ray.data.context import DataContext
from ray.data.datasource import Datasource, ReadTask
from ray.train import DataConfig

from polytrain.data.decode import DecodeError, decode
from polytrain.modalities import Geometry
from polytrain.plan import Minibatch, Plan, Tag, Timeline, uniform

CHUNK_BYTES = 8_000_000
"""A share larger than this travels in several rows, so that no block is huge."""

ROW_BYTES = 2_000_000
"""Small shares travel together: a row costs some ten milliseconds on its way, whatever it holds."""

TASK_BYTES, TASK_MINIBATCHES = 32_000_000, 8
"""A read task makes this much at most: a task costs as much again, and long ones decode less evenly."""

STRETCH_TASKS = 1000
"""Read tasks of one execution. A task costs its driver about a millisecond and two kilobytes before the first row."""

NICENESS = 5

FED_PACE_S, HUNGRY_PACE_S = 0.05, 0.002

REPLACEMENTS = 50
"""How many of the next examples are tried in place of one that can't be decoded."""


class StreamError(RuntimeError):
    """A stream brought something else than the plan says, or could not bring it."""


@dataclass(frozen=True)
class TaskMedia:
    """Where a task's examples lie: one table a split, columns as in the manifest, paths made absolute."""

    geometry: Geometry
    splits: Mapping[str, pa.Table]

    @property
    def dtype(self) -> type:
        return np.uint8 if self.geometry.decoded_bytes_per_element == 1 else np.float32


@dataclass(frozen=True)
class StreamSource:
    """Everything a read task needs; lives once in the object store, whatever the number of tasks."""

    plan: Plan
    media: tuple[TaskMedia, ...]  # by task id
    decode_time_limit_s: float

    @functools.cached_property
    def _timelines(self) -> dict[tuple[str, int], Timeline]:
        return {}

    def timeline(self, modality: str, first_step: int) -> Timeline:
        key = (modality, first_step)
        if key not in self._timelines:
            self._timelines[key] = self.plan.timeline(modality, first_step)
        return self._timelines[key]

    def share_bytes(self, task: int, workers: int) -> int:
        """Bytes of the largest share of a task's minibatch."""
        geometry = self.media[task].geometry
        example = int(np.prod(geometry.decoded_shape)) * geometry.decoded_bytes_per_element
        return example * self.plan.largest_share(task, workers)

    def chunks(self, task: int, workers: int) -> int:
        """Rows of a share: the same for every share of a task, or rows would not deal out evenly."""
        return max(1, min(self.plan.largest_share(task, workers), -(-self.share_bytes(task, workers) // CHUNK_BYTES)))


# --- in a decode worker -------------------------------------------------------------------------------------------

_sources: dict[ray.ObjectRef, StreamSource] = {}


def _source(ref: ray.ObjectRef) -> StreamSource:
    """The source behind a reference, unpickled once a process."""
    if ref not in _sources:
        _sources.clear()
        _sources[ref] = ray.get(ref)
    return _sources[ref]


_priority = {"lowered": False}


def _give_way() -> None:
    """Let training go first where it shares cores with decoding; starved of data, it sleeps and decoding runs."""
    if not _priority["lowered"]:
        _priority["lowered"] = True
        os.nice(NICENESS)


@dataclass(eq=False)
class Piece:
    """A share of a minibatch, or one chunk of it, as a decode worker made it."""

    tag: Tag
    chunk: int
    ids: list[int]  # as decoded: replacements in place of what was bad
    labels: list[list[int]]
    media: np.ndarray  # [b, *decoded_shape]
    bad: list[tuple[int, str, str]]  # id, path, reason


def read_minibatches(
    ref: ray.ObjectRef, modality: str, first_step: int, first: int, last: int, workers: int
) -> Iterator[pa.Table]:
    """Decode minibatches first..last-1 of a timeline and yield one-row tables, one for each worker in turn.

    A row holds as many consecutive minibatches' shares as `ROW_BYTES` takes, or one chunk of one share.
    """
    _give_way()
    source = _source(ref)
    timeline = source.timeline(modality, first_step)
    waiting: list[list[Piece]] = [[] for _ in range(workers)]
    size = 0
    for index in range(first, last):
        minibatch = timeline[index]
        task = minibatch.tag.task
        chunks = source.chunks(task, workers)
        needed = source.share_bytes(task, workers)
        if waiting[0] and size + needed > ROW_BYTES:
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
    table = media.splits[tag.phase]
    arrays: list[np.ndarray] = []
    used: list[int] = []
    bad: dict[int, str] = {}
    for index in indices:
        position = None if minibatch.seeds is None else float(uniform(minibatch.seeds[index], "clip"))
        for example in _candidates(source.plan, minibatch, int(index)):
            if example in bad:
                continue
            try:
                arrays.append(_decode_example(media.geometry, table, example, position, source.decode_time_limit_s))
            except DecodeError as error:
                bad[example] = str(error)
            else:
                used.append(example)
                break
    labels = table["labels" if "labels" in table.column_names else "label"].take(pa.array(used, pa.int64())).to_pylist()
    return Piece(
        tag=tag,
        chunk=chunk,
        ids=used,
        labels=[label if isinstance(label, list) else [label] for label in labels],
        media=np.stack(arrays) if arrays else np.empty((0, *media.geometry.decoded_shape), media.dtype),
        bad=[(example, _where(table, example), reason) for example, reason in bad.items()],
    )


def _candidates(plan: Plan, minibatch: Minibatch, index: int) -> Iterator[int]:
    """The example itself, and in training those that may stand in for it."""
    yield int(minibatch.ids[index])
    if minibatch.seeds is not None:
        yield from plan.replacements(minibatch.tag.task, int(minibatch.positions[index]), REPLACEMENTS).tolist()


def _decode_example(
    geometry: Geometry, table: pa.Table, example: int, position: float | None, time_limit_s: float
) -> np.ndarray:
    names = table.column_names
    source: str | bytes | None = table["data"][example].as_py() if "data" in names else None
    if source is None:
        source = table["path"][example].as_py()
        if "://" in source:
            source = _fetch(source)
    start_s = table["start_s"][example].as_py() if "start_s" in names else None
    end_s = table["end_s"][example].as_py() if "end_s" in names else None
    return decode(geometry, source, position=position, start_s=start_s, end_s=end_s, time_limit_s=time_limit_s)


def _fetch(uri: str) -> bytes:
    """The bytes of a file on any filesystem pyarrow knows."""
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
        with filesystem.open_input_file(path) as file:
            return file.readall()
    except FileNotFoundError:
        raise DecodeError("no such file") from None
    except OSError as error:
        raise DecodeError(f"can't be fetched: {error}") from None


def _where(table: pa.Table, example: int) -> str:
    return table["path"][example].as_py() or f"inline example {example}"


def _row(pieces: list[Piece]) -> pa.Table:
    """One row. The media are one binary value: Arrow copies it into shared memory, and nobody copies it after."""
    media = np.concatenate([piece.media.reshape(-1).view(np.uint8) for piece in pieces])
    buffers = [None, pa.py_buffer(np.array([0, media.nbytes], np.int64)), pa.py_buffer(media)]
    about = [
        [*astuple(piece.tag), piece.chunk, piece.ids, piece.labels, piece.media.nbytes, piece.bad] for piece in pieces
    ]
    return pa.table({"about": [json.dumps(about)], "media": pa.Array.from_buffers(pa.large_binary(), 1, buffers)})


def unpacked(row: pa.Table, source: StreamSource) -> Iterator[Piece]:
    """The pieces of a row; their media are views into it."""
    content = row["media"][0].as_buffer()
    offset = 0
    for *tag, chunk, ids, labels, size, bad in json.loads(row["about"][0].as_py()):
        media = source.media[tag[2]]
        array = np.frombuffer(content, np.uint8, size, offset).view(media.dtype)
        offset += size
        shaped = array.reshape(len(ids), *media.geometry.decoded_shape)
        yield Piece(Tag(*tag), chunk, ids, labels, shaped, [tuple(entry) for entry in bad])


# --- where the stream is built --------------------------------------------------------------------------------------

_executions: defaultdict[tuple, int] = defaultdict(int)


class Pace(ExecutionCallback):
    """Lets an executor's control loop rest between its steps.

    With rows waiting that the memory budget does not let in, Ray's loop turns as fast as it can: three streams took a
    whole core, and the interpreter lock, from training in the same process (a step took ten times as long). It rests
    long while rows are there to be taken, and shortly while the consumer waits for one.
    """

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(HUNGRY_PACE_S if executor._consumer_idling() else FED_PACE_S)


class PlanSource(Datasource):
    """Read tasks straight from a timeline: no operator between reading and decoding, nothing restarts at a pass's end.

    Every execution of the dataset ("epoch" to Ray) reads the next stretch of `STRETCH_TASKS` read tasks out of every
    two: two datasets take turns, so one can start before the other has ended.
    """

    def __init__(
        self, ref: ray.ObjectRef, source: StreamSource, modality: str, first_step: int, workers: int, turn: int
    ) -> None:
        self._ref, self._modality, self._first_step, self._workers, self._turn = (
            ref,
            modality,
            first_step,
            workers,
            turn,
        )
        self._ranges = task_ranges(source, modality, first_step, workers)
        self._key = (ref.hex(), modality, first_step, workers, turn)

    def estimate_inmemory_data_size(self) -> None:
        """Unknown to Ray, so that it does not cut rows."""

    def get_name(self) -> str:
        return f"Decode {self._modality}"

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """The read tasks of the next execution. Ray asks several times while it plans and, once an execution starts,
        with its data context: only that moves on to the next stretch."""
        stretch = 2 * _executions[self._key] + self._turn
        if data_context is not None:
            _executions[self._key] += 1
        first, last = stretch_bounds(len(self._ranges) - 1, stretch)
        return [
            ReadTask(
                functools.partial(
                    read_minibatches,
                    self._ref,
                    self._modality,
                    self._first_step,
                    int(self._ranges[task]),
                    int(self._ranges[task + 1]),
                    self._workers,
                ),
                BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None),
            )
            for task in range(first, last)
        ]


def task_ranges(source: StreamSource, modality: str, first_step: int, workers: int) -> np.ndarray:
    """Where each read task's minibatches begin in the timeline, and the end: [tasks + 1] int64.

    The first tasks hold one minibatch each, so that the first step need not wait for all of a task's.
    """
    length = len(source.timeline(modality, first_step))
    tasks = [task for task, planned in enumerate(source.plan.tasks) if planned.modality == modality]
    largest = max(source.share_bytes(task, workers) * workers for task in tasks)
    size = max(1, min(TASK_MINIBATCHES, TASK_BYTES // max(1, largest)))
    singles = min(length, size)
    return np.concatenate([np.arange(singles), np.arange(singles, length, size), [length]])


def stretch_bounds(tasks: int, stretch: int) -> tuple[int, int]:
    """The read tasks of a stretch: [first, last)."""
    return min(tasks, stretch * STRETCH_TASKS), min(tasks, (stretch + 1) * STRETCH_TASKS)


class Streams(DataConfig):
    """Builds a run's streams wherever Ray Train wants them, from the step that rank 0 wrote into start.json."""

    def __init__(
        self, ref: ray.ObjectRef, run_folder: str, *, modalities: int, cpus: float, memory_budget: int
    ) -> None:
        super().__init__()
        self._ref, self._run_folder = ref, run_folder
        self._modalities, self._cpus, self._memory = modalities, cpus, memory_budget

    def configure(
        self, datasets: dict[str, Any], world_size: int, worker_handles: Any, worker_node_ids: Any, **_: Any
    ) -> list[dict[str, DataIterator]]:
        """One iterator a worker for each stream asked for; names are those of `stream_names`."""
        first_step = json.loads((Path(self._run_folder) / "start.json").read_text())["step"]
        source = _source(self._ref)
        output: list[dict[str, DataIterator]] = [{} for _ in range(world_size)]
        for name in datasets:
            modality, turn = name.rsplit("/", 1)
            dataset = self._dataset(PlanSource(self._ref, source, modality, first_step, world_size, int(turn)))
            if world_size == 1:
                output[0][name] = dataset.iterator()  # saves the actor that deals blocks out
            else:
                for rank, split in enumerate(dataset.streaming_split(world_size, equal=False)):
                    output[rank][name] = split
        return output

    def _dataset(self, source: PlanSource) -> ray.data.Dataset:
        cpus = self._cpus / self._modalities
        at_once = max(1, int(cpus))
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        # Every row its own block, and none cut: rows are dealt out as they are.
        context.target_max_block_size = 1
        context.target_min_block_size = 1
        context.custom_execution_callback_classes = [Pace]
        # A stream from which nobody pulls for a while (a rare task, a long validation) is no error.
        context.execution_no_progress_timeout_s = -1
        # A limit a stream, or Ray shares CPUs so unevenly that a stream starves.
        limits = ExecutionResources(cpu=cpus, object_store_memory=self._memory / self._modalities)
        context.execution_options.resource_limits = limits
        context.execution_options.preserve_order = True
        dataset = ray.data.read_datasource(
            source,
            ray_remote_args={"num_cpus": round(cpus / at_once, 4)},
            override_num_blocks=1,  # with more than there are read tasks, Ray would cut rows up to make them
        )
        dataset.context.execution_options.resource_limits = limits
        dataset.context.execution_options.preserve_order = True
        return dataset


def stream_names(modalities: Iterable[str]) -> list[str]:
    """Two datasets a modality, whose stretches take turns."""
    return [f"{modality}/{turn}" for modality in modalities for turn in (0, 1)]


# --- in a training worker -------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Share:
    """A worker's part of a minibatch as it came: decoded, not yet on a device."""

    tag: Tag
    ids: np.ndarray  # [b] int64, as decoded (replacements in place of what was bad)
    labels: list[list[int]]  # the classes of each example
    media: np.ndarray  # [b, *decoded_shape] uint8 or float32
    bad: list[tuple[int, str, str]] = field(default_factory=list)  # id, path, reason


class Stream:
    """A worker's end of one modality's stream. `take` hands out its shares in the plan's order and nothing else."""

    def __init__(
        self, get_shard: Any, source: StreamSource, modality: str, first_step: int, rank: int, workers: int
    ) -> None:
        self._source, self._modality, self._workers = source, modality, workers
        self._rank = rank
        ranges = task_ranges(source, modality, first_step, workers)
        self._timeline = source.timeline(modality, first_step)
        stretches = -(-(len(ranges) - 1) // STRETCH_TASKS)
        # Where each stretch ends, in minibatches.
        self._ends = [int(ranges[stretch_bounds(len(ranges) - 1, stretch)[1]]) for stretch in range(stretches)]
        self._shards = [get_shard(f"{modality}/{turn}") for turn in range(min(2, len(self._ends)))]
        self._starter = ThreadPoolExecutor(1, thread_name_prefix=f"stream-{modality}")
        self._taken = 0
        self._stretch = 0
        self._rows: Iterator[pa.Table] | None = None
        self._pieces: Iterator[Piece] = iter(())
        self._next: Future | None = self._start(0) if self._ends else None
        self.waited_s = 0.0

    def _start(self, stretch: int) -> Future:
        """Begin a stretch in the background: its first rows are decoded while the ones before are still taken."""

        def first_row() -> tuple[pa.Table | None, Iterator[pa.Table]]:
            batches = self._shards[stretch % 2].iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=2
            )
            rows = iter(batches)
            return next(rows, None), rows

        return self._starter.submit(first_row)

    def take(self, expected: Minibatch) -> Share:
        """This worker's share of the minibatch that the plan says comes now. Raises StreamError if another comes."""
        pieces = [
            self._pull(expected.tag, chunk) for chunk in range(self._source.chunks(expected.tag.task, self._workers))
        ]
        self._taken += 1
        bad = [entry for piece in pieces for entry in piece.bad]
        ids = [example for piece in pieces for example in piece.ids]
        dealt_ids = expected.ids[self._source.plan.share(expected, self._rank, self._workers)]
        if not bad and ids != dealt_ids.tolist():
            raise StreamError(f"{self._modality} stream: {expected.tag} came with other examples than the plan's")
        media = np.concatenate([piece.media for piece in pieces])
        return Share(expected.tag, np.array(ids, np.int64), [x for piece in pieces for x in piece.labels], media, bad)

    def _pull(self, tag: Tag, chunk: int) -> Piece:
        started = time.perf_counter()
        piece = next(self._pieces, None)
        if piece is None and (row := self._next_row()) is not None:
            self._pieces = unpacked(row, self._source)
            piece = next(self._pieces)
        self.waited_s += time.perf_counter() - started
        if piece is None:
            raise StreamError(f"{self._modality} stream ended before {tag}, chunk {chunk}")
        if (piece.tag, piece.chunk) != (tag, chunk):
            raise StreamError(
                f"{self._modality} stream: expected {tag}, chunk {chunk}, but {piece.tag}, chunk {piece.chunk} came"
            )
        return piece

    def _next_row(self) -> pa.Table | None:
        if self._rows is None or (self._stretch < len(self._ends) and self._taken == self._ends[self._stretch]):
            return self._turn_over()
        # The last sixteenth of a stretch is time enough for the next execution to start.
        upcoming = self._stretch + 1
        if upcoming < len(self._ends) and self._next is None:
            begin = self._ends[self._stretch - 1] if self._stretch else 0
            if self._ends[self._stretch] - self._taken <= (self._ends[self._stretch] - begin) // 16:
                self._next = self._start(upcoming)
        return next(self._rows, None)

    def _turn_over(self) -> pa.Table | None:
        if self._rows is not None:
            next(self._rows, None)  # let Ray see that the stretch has ended
            self._stretch += 1
        future = self._next or self._start(self._stretch)
        self._next = None
        row, self._rows = future.result()
        return row

    def close(self) -> None:
        """Stop decoding ahead."""
        self._starter.shutdown(wait=False)
        if self._rows is not None and hasattr(self._rows, "close"):
            self._rows.close()
