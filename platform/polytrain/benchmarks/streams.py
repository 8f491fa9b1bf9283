"""Ray streams against torch's DataLoader: pairs of runs, each a process of its own, and what they amount to."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from polytrain.benchmarks.decoders import CLIP_S, CLIP_START_S, GEOMETRIES
from polytrain.benchmarks.processes import run_marked
from polytrain.data import manifest
from polytrain.progress import Progress, ticking

BATCH_SIZES = {"image": 64, "video": 8, "audio": 64}

QUEUE_BYTES = 256_000_000
"""What may wait in a stream, for each process that decodes: as little as leaves read tasks their full size."""

QUEUES = 10
"""A run holds so many times what may wait."""


def examples_for(modality: str, decoders: int) -> int:
    """Examples of a run that is long enough for its steady rate."""
    return math.ceil(QUEUES * decoders * QUEUE_BYTES / GEOMETRIES[modality].decoded_bytes)


def write_manifest(path: Path, modality: str, files: Sequence[Path]) -> None:
    """A task over these files."""
    count = len(files)
    columns: dict[str, Any] = {
        "path": [str(file.absolute()) for file in files],
        "label": pa.array([number % 2 for number in range(count)], pa.int32()),
        "split": ["train"] * count,
    }
    if modality == "video":
        columns |= {"start_s": [CLIP_START_S] * count, "end_s": [CLIP_START_S + CLIP_S] * count}
    manifest.write(path, task=modality, modality=modality, classes=("a", "b"), table=pa.table(columns))


def recipe_for(
    folder: Path, files: Mapping[str, Sequence[Path]], examples: Mapping[str, int], decoders: int
) -> dict[str, Any]:
    """A recipe, as nested dicts, whose training takes so many examples of each modality, files over and over."""
    tasks, modalities = {}, {}
    for name, of_modality in files.items():
        write_manifest(folder / f"{name}.parquet", name, of_modality)
        batch = min(BATCH_SIZES[name], len(of_modality))
        tasks[name] = {
            "modality": name,
            "manifest": str(folder / f"{name}.parquet"),
            "steps": max(2, math.ceil(examples[name] / batch)),
            "lr": 0.1,
            "batch_size": batch,
        }
        geometry = GEOMETRIES[name]
        modalities[name] = {key: getattr(geometry, key) for key in _KEYS[name]}
    # No validation and no test: the manifests have training examples only.
    return {
        "name": "bench",
        "modalities": modalities,
        "tasks": tasks,
        "data": {"memory_budget": decoders * QUEUE_BYTES * len(files)},
        "output": str(folder),
    }


_KEYS = {
    "image": ("size", "patch"),
    "video": ("frames", "stride", "size", "tubelet"),
    "audio": ("sample_rate", "seconds", "mel_bins", "patch"),
}


def take(
    side: str, folder: Path, name: str, recipe: Mapping[str, Any], decoders: int, progress: Progress
) -> dict[str, Any]:
    """One run of benchmarks/take.py. Raises RunFailedError."""
    spec, out = folder / f"{name}.spec.json", folder / f"{name}.json"
    spec.write_text(json.dumps({"recipe": recipe, "decoders": decoders}))
    shutil.rmtree(out.with_suffix(""), ignore_errors=True)
    with ticking(progress):
        run_marked("polytrain.benchmarks.take", [side, str(spec), str(out)], f"{folder}/{name}", folder / f"{name}.log")
    progress.add()
    return json.loads(out.read_text())


def measure(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, float]:
    """Medians over pairs of runs (Ray's, DataLoader's); ratios are medians of the pairs' ratios."""

    def median(value: Any) -> float:
        return statistics.median(value(ray, loader) for ray, loader in pairs)

    def both(name: str, ray: Any, loader: Any) -> dict[str, float]:
        return {
            f"{name}_vs_dataloader": median(lambda one, other: ray(one) / max(loader(other), 1e-9)),
            name: median(lambda one, _: ray(one)),
            f"dataloader_{name}": median(lambda _, other: loader(other)),
        }

    figures = both("examples_per_s", lambda run: run["rate"], lambda run: run["rate"])
    return {
        "vs_dataloader": figures.pop("examples_per_s_vs_dataloader"),
        **figures,
        **both("cpu_ms", lambda run: 1000 * run["steady_cpu_s"], lambda run: 1000 * run["steady_cpu_s"]),
        **both("whole_run_cpu_ms", lambda run: 1000 * run["cpu_s"], lambda run: 1000 * run["cpu_s"]),
        **both("first_batch_s", lambda run: run["all first"] - run["loop"], lambda run: run["first"] - run["imported"]),
        **both(
            "first_batch_from_process_start_s",
            lambda run: run["all first"] - run["process"],
            lambda run: run["first"] - run["process"],
        ),
        **both("whole_run_s", lambda run: run["last"] - run["process"], lambda run: run["last"] - run["process"]),
    }


def breakdown(runs: Sequence[dict[str, Any]]) -> list[tuple[str, float]]:
    """How Ray's runs came to their first minibatch: (what, seconds since the process began), medians over runs."""

    def median(value: Any) -> float:
        return statistics.median(value(run) - run["process"] for run in runs)

    steps = [
        ("plan and manifests read", lambda run: run["planned"]),
        ("ray imported", lambda run: run["ray imported"]),
        ("ray.init done", lambda run: run["ray.init"]),
        ("trainer imported", lambda run: run["trainer imported"]),
        ("worker process started", lambda run: run["worker process"]),
        ("worker group runs the loop", lambda run: run["loop"]),
        ("plan fetched by the worker", lambda run: run["source"]),
        ("streams made and begun", lambda run: run["begun"]),
        ("first decoder's process started", lambda run: min(d["process"] for d in run["decoders"])),
        ("first read task begins", lambda run: min(d["read"] for d in run["decoders"])),
        ("last stream's first read task begins", _last_stream_reads),
        ("first minibatch taken", lambda run: run["first"]),
        ("first minibatch of every stream taken", lambda run: run["all first"]),
    ]
    if not all(run["decoders"] for run in runs):
        steps = [step for step in steps if "read task" not in step[0] and "decoder" not in step[0]]
    return [(what, median(moment)) for what, moment in steps]


def _last_stream_reads(run: Mapping[str, Any]) -> float:
    firsts: dict[str, float] = {}
    for decoder in run["decoders"]:
        firsts[decoder["modality"]] = min(decoder["read"], firsts.get(decoder["modality"], math.inf))
    return max(firsts.values())
