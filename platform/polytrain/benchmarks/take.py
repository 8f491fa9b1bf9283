"""One measured run: a recipe's training minibatches taken as fast as they come, through Ray or torch's DataLoader.

    python -m polytrain.benchmarks.take ray|dataloader SPEC OUT

A process of its own, so that start-up counts and nothing is left over. SPEC (JSON) holds the recipe and the number of
decoding processes; OUT gets moments (seconds since the epoch) and counts. Both sides decode the same examples in the
same order with the same function, and their decoders have the same priority: whatever else runs slows both alike.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polytrain.benchmarks.processes import MARK, marked_cpu_seconds, process_start
from polytrain.data.reading import Flow, StreamSource, TaskMedia
from polytrain.plan import Timeline

STEADY_FROM = 0.2
"""Share of a run before the steady rate counts: by then whatever queued up before the first minibatch is taken."""


@dataclass
class Taking:
    """Clocks around a loop that takes minibatches: `taken(n)` after each, n its examples."""

    total: int
    done: int = 0
    first: float = 0.0
    steady: tuple[float, int, float] | None = None  # moment, examples, CPU seconds

    def taken(self, examples: int) -> None:
        self.done += examples
        if not self.first:
            self.first = time.time()
        if self.steady is None and self.done >= STEADY_FROM * self.total:
            self.steady = time.time(), self.done, marked_cpu_seconds(os.environ.get(MARK, ""))

    def figures(self) -> dict[str, float]:
        """Taken at once behind the last minibatch."""
        last, cpu = time.time(), marked_cpu_seconds(os.environ.get(MARK, ""))
        begun, before, cpu_before = self.steady
        examples = max(1, self.done - before)
        return {
            "first": self.first,
            "last": last,
            "examples": self.done,
            "rate": examples / max(last - begun, 1e-9),
            "steady_cpu_s": (cpu - cpu_before) / examples,
            "cpu_s": cpu / self.done,
        }


# --- torch's DataLoader ---------------------------------------------------------------------------------------------


class Files:
    """A map-style dataset over one task's examples."""

    def __init__(self, decode_one: Callable[[str], Any], paths: list[str]) -> None:
        self.decode_one, self.paths = decode_one, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.decode_one(self.paths[index])


def take_with_dataloader(source: StreamSource, decoders: int) -> dict[str, float]:
    from torch.utils.data import DataLoader

    from polytrain.benchmarks.decoders import ours
    from polytrain.data.decode_worker import give_way

    (media,) = source.media
    examples = media.splits["train"]
    timeline = source.timeline(media.geometry.name, 0)
    moments = {"imported": time.time()}
    loader = DataLoader(
        Files(ours(media.geometry), [examples.location(example) for example in range(len(examples))]),
        batch_sampler=[minibatch.ids.tolist() for minibatch in timeline],
        num_workers=decoders,
        worker_init_fn=give_way,
    )
    taking = Taking(sum(len(minibatch) for minibatch in timeline))
    for batch in loader:
        taking.taken(len(batch))
    return taking.figures() | moments


# --- Ray, as training does it ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WatchedSource(StreamSource):
    """Leaves a file behind when a process first looks up what to read: when each decoder began."""

    watch: str = ""

    def timeline(self, modality: str, first_step: int) -> Timeline:
        mark = Path(self.watch) / f"{os.getpid()}.json"
        if "decode" in _title().lower() and not mark.exists():
            begun = {"process": process_start(), "read": time.time(), "modality": modality}
            mark.write_text(json.dumps(begun))
        return super().timeline(modality, first_step)


def _title() -> str:
    """What Ray calls this process: `ray::Decode image`, `ray::_train_fn ...`."""
    return Path("/proc/self/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def _take_on_worker(config: dict[str, Any]) -> None:
    """What the worker group runs: training's start, and taking without a model."""
    begun = time.time()
    from polytrain.data.decode_worker import source_behind
    from polytrain.run_folder import RunFolder
    from polytrain.training.start import Place, start

    source = source_behind(config["source"][0])
    moments = {"worker process": process_start(), "loop": begun, "source": time.time()}
    modalities = config["modalities"]
    place = Place.in_worker_group(config["streams"])
    streams = start(source, modalities, RunFolder(config["folder"]), place).streams
    moments["begun"] = time.time()
    timelines = [source.timeline(name, 0) for name in modalities]
    taking = Taking(sum(len(minibatch) for timeline in timelines for minibatch in timeline))
    # Turn by turn, so that a run over several modalities has the first minibatch of each at once.
    firsts = {}
    for turn in range(max(map(len, timelines))):
        for name, timeline in zip(modalities, timelines, strict=True):
            if turn < len(timeline):
                taking.taken(len(streams[name].take(timeline[turn]).ids))
                firsts.setdefault(name, time.time())
    figures = taking.figures()
    for stream in streams.values():
        stream.close()
    moments |= {"first": firsts[modalities[0]], "all first": max(firsts.values())}
    (Path(config["folder"]) / "taken.json").write_text(json.dumps(figures | moments))


def take_with_ray(source: StreamSource, decoders: int, folder: Path) -> dict[str, Any]:
    from polytrain.cluster import connect
    from polytrain.launch import warm_up

    moments = {"planned": time.time()}
    import ray

    moments["ray imported"] = time.time()
    connect(decoders + 1)  # as many processes decode as the opponent has, beside the worker
    moments["ray.init"] = time.time()
    modalities = [media.geometry.name for media in source.media]
    warm_up(len(modalities) * source.flow.processes)
    from ray.train import RunConfig, ScalingConfig

    from polytrain.data.stream import Streams
    from polytrain.trainer import make_trainer

    moments["trainer imported"] = time.time()
    ref = ray.put(source)
    make_trainer(
        lambda config: _take_on_worker(config),
        {"source": [ref], "folder": str(folder), "modalities": modalities},
        streams=Streams(ref, str(folder), modalities),
        scaling=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run=RunConfig(name="take", storage_path=str(folder / "ray_train")),
    ).fit()
    decoders_begun = [json.loads(path.read_text()) for path in (folder / "watch").glob("*.json")]
    taken = json.loads((folder / "taken.json").read_text())
    return moments | taken | {"decoders": sorted(decoders_begun, key=lambda begun: begun["read"])}


def main(side: str, spec_file: str, out: str) -> None:
    spec = json.loads(Path(spec_file).read_text())
    from polytrain.experiment import all_splits, open_experiment
    from polytrain.recipe import check

    recipe = check(spec["recipe"])
    experiment, manifests = open_experiment(recipe)
    media = tuple(
        TaskMedia(experiment.architecture.modalities[task.modality], all_splits(manifest))
        for task, manifest in zip(experiment.tasks, manifests, strict=True)
    )
    flow = Flow.shared(len(experiment.modalities), cpus=spec["decoders"], memory=recipe.data.memory_budget)
    described = experiment.plan, media, recipe.data.decode_time_limit_s, flow
    if side == "ray":
        folder = Path(out).with_suffix("")
        (folder / "watch").mkdir(parents=True)
        figures = take_with_ray(WatchedSource(*described, watch=str(folder / "watch")), spec["decoders"], folder)
    else:
        figures = take_with_dataloader(StreamSource(*described), spec["decoders"])
    Path(out).write_text(json.dumps(figures | {"process": process_start()}))


if __name__ == "__main__":
    # As a module with a name, so that Ray's workers can import what is sent to them.
    from polytrain.benchmarks import take

    take.main(*sys.argv[1:])
