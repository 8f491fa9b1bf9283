"""What a decode worker runs for a read task. It imports neither torch nor Ray Train, and so starts a second sooner."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray

from polytrain.data.reading import StreamSource, read_minibatches
from polytrain.secrecy import faults_without_secrets

NICENESS = 5

WARM_S = 0.5


def warm_up(count: int, environment: dict[str, str]) -> None:
    """Start decoding processes that read tasks will find waiting: beside Ray Train's own start, not after it.

    `environment` must be what the training worker's tasks will have, for Ray gives a task no process of another one.
    """
    started = ray.remote(num_cpus=0, runtime_env={"env_vars": environment})(_import_what_reading_needs)
    for _ in range(count):
        started.remote()


def _import_what_reading_needs() -> None:
    import ray.data  # noqa: F401

    time.sleep(WARM_S)  # or the second task might find the first one's process


_sources: dict[ray.ObjectRef, StreamSource] = {}
_priority = {"lowered": False}


def read(ref: ray.ObjectRef, *of_minibatches: Any) -> Iterator[pa.Table]:
    """Rows of minibatches, for the arguments of `read_minibatches` behind its source."""
    give_way()
    with faults_without_secrets():
        yield from read_minibatches(source_behind(ref), *of_minibatches)


def source_behind(ref: ray.ObjectRef) -> StreamSource:
    """The source behind a reference, unpickled once a process."""
    if ref not in _sources:
        _sources.clear()
        _sources[ref] = ray.get(ref)
    return _sources[ref]


def give_way(_: Any = None) -> None:
    """Let training go first where it shares cores with decoding; starved of data, it sleeps and decoding runs."""
    if not _priority["lowered"]:
        _priority["lowered"] = True
        os.nice(NICENESS)
