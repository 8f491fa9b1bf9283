"""Where an attempt of a run starts, and its streams: asked for before torch is imported, to come up beside it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.train

from polytrain.data.reading import StreamSource
from polytrain.data.stream import Stream
from polytrain.run_folder import RunFolder
from polytrain.training import checkpoint


@dataclass(frozen=True)
class Start:
    """What one worker goes on from: a checkpoint or nothing, and the streams behind it by modality."""

    checkpoint: Path | None
    state: dict[str, Any] = field(repr=False)
    streams: dict[str, Stream] = field(repr=False)

    @property
    def step(self) -> int:
        return self.state.get("step", 0)


def start(source: StreamSource, modalities: list[str], run: RunFolder) -> Start:
    """Rank 0 picks the newest whole checkpoint and says so in start.json; only then are streams asked for.

    The other ranks read start.json once their streams are there: Ray gives them none before rank 0 has asked.
    """
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    # Streams are run by threads of this process: they are to get the interpreter at once, not after 5 ms.
    sys.setswitchinterval(0.0005)
    if rank == 0:
        found = checkpoint.newest_whole(run.checkpoints)
        run.write_start(found.state.get("step", 0), str(found.path) if found.path else None, faults=found.faults)
    get_shard = ray.train.get_dataset_shard
    streams = {modality: Stream(get_shard, source, modality, rank, workers) for modality in modalities}
    chosen = run.start()
    for stream in streams.values():
        stream.begin(chosen["step"])
    if not chosen["checkpoint"]:
        return Start(None, {}, streams)
    path = Path(chosen["checkpoint"])
    return Start(path, json.loads((path / "state.json").read_text()), streams)
