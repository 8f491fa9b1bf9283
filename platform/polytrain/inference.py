"""Examples through a model, on any number of machines: Ray Data decodes them, a pool of actors applies the model.

One pipeline serves all scans. A read task decodes a stretch of a scan into rows of uint8 frames or waveforms (torch is
never imported there); an actor a GPU, or one a machine where Ray has none, turns rows into features or logits.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from polytrain.data.reading import binary, binary_value
from polytrain.scan import CHUNK_BYTES, Decoded, Scan, Scanned, decoded, means
from polytrain.secrecy import faults_without_secrets, without_secrets

if TYPE_CHECKING:
    from polytrain.forward import Forward

__all__ = ["LostError", "Scan", "Scanned", "run_scans"]

ROW_BYTES = 2_000_000
"""Small examples travel together: a row costs some ten milliseconds on its way, whatever it holds."""

TASK_ROWS = 4
"""Rows of a read task, which costs a few milliseconds whatever it holds."""
MOST_TASKS = 4_000
"""Read tasks of a scan: a driver holds some kilobytes for each, so those of a large scan hold more rows."""
MOST_EXAMPLES = 1_024
"""Of a row, however small its examples are."""

RETRIES = 2
"""How often a read task that ended its process is tried again."""
LOSSES = 3


class LostError(RuntimeError):
    """Processes end or machines are lost again and again."""


def run_scans(
    load: Callable[[], Forward],
    scans: Sequence[Scan],
    *,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Scanned]:
    """All examples of all scans, each exactly once, in any order.

    `load` makes the model where it is applied (`Trained.portable()` travels); `progress` is told how many examples more
    are done. Media of up to `batch_size` examples travel together, more where they are small. Joins Ray as
    `cluster.connect` does, and leaves it at the end if it was joined here.

    Where a process or a machine is lost, what it had not delivered is done again; `LOSSES` losses with nothing
    delivered between them are a LostError.
    """
    scans = tuple(scan for scan in scans if len(scan.examples))
    if not scans:
        return
    from polytrain.cluster import joined

    # A decoder and a model at least, also on one core.
    with joined(max(os.cpu_count() or 1, 2)):
        import ray

        done: set[tuple[int, int]] = set()  # (number of the scan, first example) of each row
        losses = 0
        while True:
            try:
                for row in _applied(load, scans, _parts(scans, batch_size, done)):
                    losses = 0
                    place, scanned = _scanned(row, scans)
                    done.add(place)
                    if progress is not None:
                        progress(len(scanned.ids) + len(scanned.bad))
                    yield scanned
                return
            except ray.exceptions.RayError as error:
                losses += 1
                if isinstance(error, ray.exceptions.RayTaskError):  # what the code there raised
                    raise
                if losses == LOSSES:
                    raise LostError(f"{LOSSES} times a process or machine was lost: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return without_secrets(str(error)).partition("\n")[0]


def _applied(load: Callable[[], Forward], scans: tuple[Scan, ...], parts: Sequence[Part]) -> Iterator[pa.Table]:
    """The pipeline's rows: `about` as `_row` made it, and `outputs`."""
    import ray
    from ray.data import ActorPoolStrategy
    from ray.data.context import DataContext

    from polytrain.data.stream import rows_as_they_are

    if not parts:
        return
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it tells of every execution's end
    context = DataContext.get_current()
    rows_as_they_are(context)
    context.execution_options.preserve_order = False
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), min(1.0, resources.get("CPU", 2) / 2)
    machines = sum(node["Alive"] for node in ray.nodes())
    without_examples = tuple(replace(scan, examples=()) for scan in scans)
    with warnings.catch_warnings():
        # Of `ray_remote_args`, which Ray 2.64 will drop; nothing else takes these two yet.
        warnings.simplefilter("ignore", DeprecationWarning)
        media = ray.data.read_datasource(
            _source(ray.put(scans), parts),
            ray_remote_args={"num_cpus": cpus, "max_retries": RETRIES},
            override_num_blocks=1,  # with more than there are read tasks, Ray would cut rows up to make them
        )
        applied = media.map_batches(
            _Model,
            # In a list, or Ray would put the value in its place.
            fn_constructor_args=([ray.put(load)], without_examples),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ActorPoolStrategy(min_size=1, max_size=max(1, min(gpus or machines, len(parts)))),
            num_cpus=cpus,
            num_gpus=1 if gpus else 0,
            # `run_scans` begins anew. Where actors restart, Ray warns of arguments that may be lost; and with the same
            # settings as decoding, it would do both in one process.
            max_restarts=0,
        )
    yield from applied.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


# --- in a decode worker -------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """What one read task decodes."""

    scan: int
    rows: Sequence[int]
    """The first example of each row."""
    size: int
    """Examples of a row."""


def _parts(scans: Sequence[Scan], batch_size: int, done: Collection[tuple[int, int]] = ()) -> list[Part]:
    """All read tasks but for the rows that are done."""
    parts = []
    for number, scan in enumerate(scans):
        size, total = scan.example_bytes, len(scan.examples)
        row = max(1, min(MOST_EXAMPLES, max(ROW_BYTES // size, min(batch_size, CHUNK_BYTES // size))))
        rows: Sequence[int] = range(0, total, row)
        if done:
            rows = [begin for begin in rows if (number, begin) not in done]
        task = max(TASK_ROWS, -(-len(rows) // MOST_TASKS))
        parts += [Part(number, rows[first : first + task], row) for first in range(0, len(rows), task)]
    return parts


def _source(scans: Any, parts: Sequence[Part]) -> Any:
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class Decode(Datasource):
        """Read tasks that decode."""

        def estimate_inmemory_data_size(self) -> None:
            """Unknown to Ray, so that it does not cut rows."""

        def get_name(self) -> str:
            return "Decode"

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
            nothing = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(functools.partial(_read, scans, *part), nothing) for part in parts]

    return Decode()


@functools.lru_cache(maxsize=1)
def _fetched(scans: Any) -> tuple[Scan, ...]:
    """The scans behind a reference, unpickled once a process."""
    import ray

    os.nice(5)  # the model goes first where it shares cores with decoding
    return ray.get(scans)


def _read(scans: Any, number: int, rows: Sequence[int], size: int) -> Iterator[pa.Table]:
    with faults_without_secrets():
        scan = _fetched(scans)[number]
        decode = decoded
        if _tried_before():
            from polytrain.apart import decoded_apart as decode
        for begin in rows:
            yield _row(number, begin, decode(scan, range(begin, min(begin + size, len(scan.examples)))))


def _tried_before() -> bool:
    """Whether this task has ended a process: a crash in a decoder, or too little memory."""
    from ray._private.worker import global_worker

    return global_worker.core_worker.get_current_task_attempt_number() > 0


def _row(number: int, begin: int, some: Decoded) -> pa.Table:
    """One row: all media as one binary value, and what there is to know of them."""
    about = json.dumps([number, begin, some.ids, some.labels, some.bad])
    return pa.table({"about": [about], "media": binary_value(some.media)})


# --- where the model is -------------------------------------------------------------------------------------------


class _Model:
    """An actor of the pool."""

    @faults_without_secrets()
    def __init__(self, load: list[Any], scans: tuple[Scan, ...]) -> None:
        import ray
        import torch

        # Ray gives an actor one thread for the CPU that it reserves; decoders beside it give way.
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        self.forward, self.scans = ray.get(load[0])(), scans

    @faults_without_secrets()
    def __call__(self, row: pa.Table) -> pa.Table:
        number, _, ids, _, _ = json.loads(row["about"][0].as_py())
        scan = self.scans[number]
        media = np.frombuffer(binary(row["media"]), scan.geometry.decoded_dtype).reshape(
            -1, *scan.geometry.decoded_shape
        )
        found = means(self.forward, scan.modality, media, scan.tasks, len(ids))
        widths = [found[name].shape[1] for name in scan.outputs]
        flat = np.concatenate([found[name].reshape(-1) for name in scan.outputs])
        return pa.table({"about": row["about"], "widths": [widths], "outputs": binary_value(flat)})


# --- back at the driver -------------------------------------------------------------------------------------------


def _scanned(row: pa.Table, scans: Sequence[Scan]) -> tuple[tuple[int, int], Scanned]:
    """Which row it is (number of the scan, first example), and what became of it."""
    number, begin_of_row, ids, labels, bad = json.loads(row["about"][0].as_py())
    # A copy: kept as they are, outputs would hold their blocks in Ray's memory until the last is there.
    scan, flat, begin = scans[number], np.frombuffer(binary(row["outputs"]), np.float32).copy(), 0
    outputs = {}
    for name, width in zip(scan.outputs, row["widths"][0].as_py(), strict=True):
        end = begin + width * len(ids)
        outputs[name] = flat[begin:end].reshape(len(ids), width)
        begin = end
    scanned = Scanned(scan.key, np.array(ids, np.int64), outputs, labels, [tuple(entry) for entry in bad])
    return (number, begin_of_row), scanned
