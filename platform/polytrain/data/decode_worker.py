"""What a decode worker runs for a read task. It imports neither torch nor Ray Train, and so starts a second sooner."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray

from polytrain.data.reading import StreamSource, read_minibatches

NICENESS = 5

_sources: dict[ray.ObjectRef, StreamSource] = {}
_priority = {"lowered": False}


def read(ref: ray.ObjectRef, *of_minibatches: Any) -> Iterator[pa.Table]:
    """Rows of minibatches, for the arguments of `read_minibatches` behind its source."""
    give_way()
    return read_minibatches(source_behind(ref), *of_minibatches)


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
