"""Where an attempt of a run starts, and its streams: asked for before torch is imported, to come up beside it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.train
from ray.data import DataIterator

from polytrain.data.reading import StreamSource
from polytrain.data.stream import Stream, Streams
from polytrain.run_folder import RunFolder
from polytrain.training import run_checkpoints


@dataclass(frozen=True)
class Place:
    """Where a worker stands among those of its run, and how it gets the streams that `Streams` builds, by name."""

    rank: int
    workers: int
    local_workers: int  # on its node
    get_shard: Callable[[str], DataIterator]
    in_group: bool  # Ray Train's, which then knows its device

    @classmethod
    def in_worker_group(cls, streams: Streams) -> Place:
        """As Ray Train says it."""
        context = ray.train.get_context()
        workers = context.get_world_size()
        get_shard = streams.alone if workers == 1 else ray.train.get_dataset_shard
        return cls(context.get_world_rank(), workers, context.get_local_world_size(), get_shard, True)

    @classmethod
    def alone(cls, streams: Streams) -> Place:
        """In a process of its own, without a worker group."""
        return cls(0, 1, 1, streams.alone, False)


@dataclass(frozen=True)
class Start:
    """What one worker goes on from: a checkpoint or nothing, and the streams behind it by modality."""

    place: Place = field(repr=False)
    checkpoint: Path | None
    state: dict[str, Any] = field(repr=False)
    streams: dict[str, Stream] = field(repr=False)

    @property
    def step(self) -> int:
        return self.state.get("step", 0)


def start(source: StreamSource, modalities: list[str], run: RunFolder, place: Place) -> Start:
    """Rank 0 picks the newest whole checkpoint and says so in start.json; only then are streams asked for.

    The other ranks read start.json once their streams are there: Ray gives them none before rank 0 has asked.
    """
    # Streams are run by threads of this process: they are to get the interpreter at once, not after 5 ms.
    sys.setswitchinterval(0.0005)
    if place.rank == 0:
        newest, state, faults = run_checkpoints.newest(run)
        run.write_start(state.get("step", 0), newest, faults=faults)
    streams = {
        modality: Stream(place.get_shard, source, modality, place.rank, place.workers) for modality in modalities
    }
    chosen = run.start()
    for stream in streams.values():
        stream.begin(chosen["step"])
    if not chosen["checkpoint"]:
        return Start(place, None, {}, streams)
    path = run_checkpoints.copy(chosen["checkpoint"])
    return Start(place, path, json.loads((path / "state.json").read_text()), streams)
