"""From numbers to media: one Ray Data stream a modality, whose source is the plan itself.

A read task is told "minibatches i..j of this modality" and yields rows (data/reading.py). Rows carry their tag, and the
consumer refuses a minibatch that is not the one it expects. Read tasks never import torch: a decode worker starts two
seconds sooner and is 700 MB lighter.

The driver makes a `StreamSource` and hands `Streams` to the trainer. A worker alone makes its streams itself; for
several, Ray Train calls `Streams.configure` when rank 0 asks. Each worker wraps its iterators in a `Stream`.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataIterator, ExecutionResources
from ray.data._internal.execution import streaming_executor_state
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.metadata_fetcher import InlineMetadataFetcher
from ray.data.block import BlockMetadata
from ray.data.context import DataContext
from ray.data.datasource import Datasource, ReadTask
from ray.train import DataConfig

from polytrain.data import decode_worker
from polytrain.data.decode_worker import source_behind
from polytrain.data.reading import Flow, Piece, StreamSource, unpacked
from polytrain.plan import Minibatch, Tag
from polytrain.run_folder import open_run

TASK_MINIBATCHES, PACKED_MINIBATCHES = 512, 8
"""A read task makes so many minibatches at most. Some 20 ms lie between one and the next. But of a packed collection
those that a machine's processes make at a time should lie in few windows, for the processes share what they fetch."""

FIRST_TASKS = 8
"""The first read tasks hold one minibatch each, and those behind them twice as many each time: the first step need
not wait for all of a task's, nor the next ones for a large row."""

FED_PACE_S, HUNGRY_PACE_S, STUCK_PACE_S = 0.05, 0.002, 0.02


class StreamError(RuntimeError):
    """A stream brought something else than the plan says, or could not bring it."""


# --- where the stream is built --------------------------------------------------------------------------------------

_executions: defaultdict[tuple, int] = defaultdict(int)


class Pace(ExecutionCallback):
    """Lets an executor's control loop turn when a read task has yielded a row or ended, and rest otherwise.

    By itself Ray's loop looks every 0.1 s and knows a row, or a task's end, a turn later: a tenth of the decoders'
    time was lost between tasks. And with rows waiting that the memory budget does not let in, it turns as fast as it
    can: three streams took a whole core, and the interpreter lock, from training in the same process (a step took ten
    times as long).
    """

    def __init__(self) -> None:
        self._brought = -1

    def before_execution_starts(self, executor: Any) -> None:
        # Waiting is done here; and the loop is to fetch what a row is itself, not to be told of it a turn later.
        streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = 0.005
        executor._metadata_fetcher = InlineMetadataFetcher()

    def on_execution_step(self, executor: Any) -> None:
        if not executor._consumer_idling():
            time.sleep(FED_PACE_S)
            return
        brought = sum(state.num_completed_tasks for state in executor._topology.values())
        time.sleep(HUNGRY_PACE_S if brought > self._brought else STUCK_PACE_S)
        self._brought = brought
        tasks = [task.get_waitable() for operator in executor._topology for task in operator.get_active_tasks()]
        if tasks:
            ray.wait(tasks, num_returns=1, timeout=0.1, fetch_local=False)


class PlanSource(Datasource):
    """Read tasks straight from a timeline: no operator between reading and decoding, nothing restarts at a pass's end.

    Every execution of the dataset ("epoch" to Ray) reads the next stretch of `stretch_tasks` read tasks out of every
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
        self._stretch_tasks = source.stretch_tasks
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
        first, last = stretch_bounds(len(self._ranges) - 1, stretch, self._stretch_tasks)
        return [
            ReadTask(
                functools.partial(
                    decode_worker.read,
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

    Minibatches of the test, which come last, have a size of their own: they may hold many views.
    """
    length = len(source.timeline(modality, first_step))
    tasks = [task for task, planned in enumerate(source.plan.tasks) if planned.modality == modality]
    test = length - sum(source.plan.eval_parts(task, "test") for task in tasks)
    packed = any(examples.packed for task in tasks for examples in source.media[task].splits.values())

    def size(minibatches: int, *phases: str) -> int:
        largest = max(source.share_bytes(task, phase, workers) * workers for task in tasks for phase in phases)
        # Each process has several to do, or at the end one would have nothing and another much.
        most = min(PACKED_MINIBATCHES if packed else TASK_MINIBATCHES, minibatches // (4 * source.flow.processes))
        return max(1, min(most, source.flow.task_bytes // max(1, largest)))

    several = size(test, "train", "val")
    doublings = np.maximum(np.arange(FIRST_TASKS + several.bit_length()) - FIRST_TASKS + 1, 0)
    growing = np.minimum(2**doublings, several)
    begins = np.concatenate([[0], np.cumsum(growing)])
    begins = np.concatenate([begins, np.arange(begins[-1] + several, test, several)])
    return np.concatenate([begins[begins < test], np.arange(test, length, size(length - test, "test")), [length]])


def stretch_bounds(tasks: int, stretch: int, size: int) -> tuple[int, int]:
    """The read tasks of a stretch of `size`: [first, last)."""
    return min(tasks, stretch * size), min(tasks, (stretch + 1) * size)


class Streams(DataConfig):
    """Builds a run's streams wherever Ray Train wants them, from the step that rank 0 wrote into start.json."""

    def __init__(self, ref: ray.ObjectRef, run_folder: str, modalities: Sequence[str]) -> None:
        super().__init__()
        self._ref, self._run_folder = ref, run_folder
        self.names = stream_names(modalities)

    def configure(
        self, datasets: dict[str, Any], world_size: int, worker_handles: Any, worker_node_ids: Any, **_: Any
    ) -> list[dict[str, DataIterator]]:
        """One iterator a worker for each stream asked for; names are those of `stream_names`."""
        first_step = open_run(self._run_folder).start()["step"]
        source = source_behind(self._ref)
        output: list[dict[str, DataIterator]] = [{} for _ in range(world_size)]
        for name in datasets:
            modality, turn = name.rsplit("/", 1)
            stretch = PlanSource(self._ref, source, modality, first_step, world_size, int(turn))
            dataset = self._dataset(stretch, source.flow)
            if world_size == 1:
                output[0][name] = dataset.iterator()  # saves the actor that deals blocks out
            else:
                for rank, split in enumerate(dataset.streaming_split(world_size, equal=False)):
                    output[rank][name] = split
        return output

    def alone(self, name: str) -> DataIterator:
        """The stream of this name for a worker that has no others beside it."""
        return self.configure({name: None}, 1, None, None)[0][name]

    def _dataset(self, source: PlanSource, flow: Flow) -> ray.data.Dataset:
        context = DataContext.get_current()
        rows_as_they_are(context)
        # A stream from which nobody pulls for a while (a rare task, a long validation) is no error.
        context.execution_no_progress_timeout_s = -1
        # A limit a stream, or Ray shares CPUs so unevenly that a stream starves.
        limits = ExecutionResources(cpu=flow.cpus, object_store_memory=flow.memory)
        context.execution_options.resource_limits = limits
        context.execution_options.preserve_order = True
        dataset = ray.data.read_datasource(
            source,
            ray_remote_args={"num_cpus": flow.cpus_each},
            override_num_blocks=1,  # with more than there are read tasks, Ray would cut rows up to make them
        )
        dataset.context.execution_options.resource_limits = limits
        dataset.context.execution_options.preserve_order = True
        return dataset


def rows_as_they_are(context: DataContext) -> None:
    """Every row its own block, none cut, in a paced execution that prints nothing."""
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1
    context.target_min_block_size = 1
    context.memory_usage_poll_interval_s = None  # a thread a task, whose findings nobody reads
    context.custom_execution_callback_classes = [Pace]


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
    chunks: list[np.ndarray]  # [n, *decoded_shape] uint8 or float32 each, an example's views one behind the other
    bad: list[tuple[int, str, str]] = field(default_factory=list)  # id, path, reason

    @functools.cached_property
    def media(self) -> np.ndarray:
        """[b * views, *decoded_shape]: all chunks, copied only where there are several. Not to be written to."""
        return self.chunks[0] if len(self.chunks) == 1 else np.concatenate(self.chunks)

    def __len__(self) -> int:
        return sum(map(len, self.chunks))


class Stream:
    """A worker's end of one modality's stream. `take` hands out its shares in the plan's order and nothing else."""

    def __init__(self, get_shard: Any, source: StreamSource, modality: str, rank: int, workers: int) -> None:
        self._source, self._modality, self._rank, self._workers = source, modality, rank, workers
        self._get_shard = get_shard
        first, self._other = stream_names([modality])
        self._shards = [get_shard(first)]
        self._starter = ThreadPoolExecutor(1, thread_name_prefix=f"stream-{modality}")
        self.waited_s = 0.0

    def begin(self, first_step: int) -> None:
        """Start decoding from a training step on."""
        ranges = task_ranges(self._source, self._modality, first_step, self._workers)
        tasks, size = len(ranges) - 1, self._source.stretch_tasks
        stretches = -(-tasks // size)
        # Where each stretch ends, in minibatches.
        self._ends = [int(ranges[stretch_bounds(tasks, stretch, size)[1]]) for stretch in range(stretches)]
        if stretches > 1:
            self._shards.append(self._get_shard(self._other))
        self._taken = 0
        self._stretch = 0
        self._rows: Iterator[pa.Table] | None = None
        self._pieces: Iterator[Piece] = iter(())
        self._next: Future | None = self._start(0) if self._ends else None

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
        chunks = self._source.chunks(expected.tag.task, expected.tag.phase, self._workers)
        pieces = [self._pull(expected.tag, chunk) for chunk in range(chunks)]
        self._taken += 1
        bad = [entry for piece in pieces for entry in piece.bad]
        ids = [example for piece in pieces for example in piece.ids]
        dealt_ids = expected.ids[self._source.plan.share(expected, self._rank, self._workers)]
        if not bad and ids != dealt_ids.tolist():
            raise StreamError(f"{self._modality} stream: {expected.tag} came with other examples than the plan's")
        labels = [of_example for piece in pieces for of_example in piece.labels]
        return Share(expected.tag, np.array(ids, np.int64), labels, [piece.media for piece in pieces], bad)

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
