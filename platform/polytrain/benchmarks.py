"""Claims of speed, measured with the opponent in the same run: ratios of medians over interleaved repetitions."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial


def bench_command(usage: str, arguments: Sequence[str] | None = None) -> int:
    """`python jobs/bench.py NAME`. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python jobs/bench.py", description=usage)
    parser.add_argument("name", choices=sorted(BENCHMARKS), help="what to measure")
    BENCHMARKS[parser.parse_args(arguments).name]()
    return 0


def plan() -> None:
    """The paper's nine tasks at 10 million examples each: start-up, and any step's minibatch."""
    from polytrain.plan import Plan, PlannedTask
    from polytrain.schedule import Budget, make_schedule

    steps = (20_000, 10_000, 10_000, 500, 2_500, 100_680, 123_640, 15_900, 134_700)
    modalities = ("image",) * 5 + ("video",) * 2 + ("audio",) * 2
    started = time.perf_counter()
    sizes = {"train": 10_000_000, "val": 20_000, "test": 20_000}
    tasks = [
        PlannedTask(f"task{n}", modality, 512 if modality == "image" else 64, sizes, "")
        for n, modality in enumerate(modalities)
    ]
    whole = Plan(make_schedule("weighted", [Budget(s, 0, 0.1) for s in steps], 0), tasks, seed=0, eval_every=10_000)
    timelines = [whole.timeline(modality) for modality in ("image", "video", "audio")]
    print(f"{whole.schedule.steps:,} steps over {len(tasks) * sizes['train']:,} examples")
    print(f"planned in {time.perf_counter() - started:.2f} s")
    for timeline in timelines:
        started = time.perf_counter()
        asked = range(0, len(timeline), len(timeline) // 500)
        for index in asked:
            timeline[index]
        each = (time.perf_counter() - started) / len(asked)
        print(f"{timeline.modality}: {1000 * each:.2f} ms a minibatch, anywhere in {len(timeline):,}")


def step() -> None:
    """A CPU worker's step: its share split over the cores against torch splitting every operation, in a thread as Ray
    Train runs it; 65, 193 and 97 tokens, width 96, depth 4, batch 16."""
    import os
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from torch.nn import functional as F

    from polytrain.modalities import Audio, Image, Video
    from polytrain.model.architecture import Architecture, Head
    from polytrain.model.polyvit import PolyViT

    geometries = {
        "image": Image((64, 64), (8, 8)),
        "video": Video(12, 2, (64, 64), (4, 8, 8)),
        "audio": Audio(16000, 0.96, 64, (8, 8)),
    }
    heads = {name: Head(name, 10) for name in geometries}
    model = PolyViT(Architecture(4, 96, 3, 384, modalities=geometries, tasks=heads))
    cores = os.cpu_count() or 1
    pool = ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))
    inputs = {name: torch.randn(16, 3, *geometry.input_shape) for name, geometry in geometries.items()}
    labels = torch.randint(0, 10, (16,))

    def gradients(name: str, part: slice) -> tuple[torch.Tensor, ...]:
        loss = F.cross_entropy(model(name, inputs[name][part]), labels[part], reduction="sum") / 16
        return torch.autograd.grad(loss, model.used_by(name))

    def split_share(name: str) -> None:
        torch.set_num_threads(1)
        parts = list(pool.map(lambda part: gradients(name, slice(part, None, cores)), range(cores)))
        _ = [sum(of_parameter) for of_parameter in zip(*parts, strict=True)]

    def split_operations(name: str) -> None:
        torch.set_num_threads(cores)
        gradients(name, slice(None))

    def measure() -> None:
        for name in geometries:
            rivals = {"share split over cores": split_share, "torch's threads": split_operations}
            compare(name, {rival: partial(run, name) for rival, run in rivals.items()})

    with ThreadPoolExecutor(1) as thread:
        thread.submit(measure).result()


def compare(what: str, rivals: dict[str, Callable[[], None]], repetitions: int = 15) -> None:
    """Run rivals in turn and print each one's median and its ratio to the first."""
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for repetition in range(repetitions + 2):
        for name, run in rivals.items():
            started = time.perf_counter()
            run()
            if repetition >= 2:  # two to warm up
                times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"{what}, {name}: {1000 * median:.1f} ms, {median / first:.2f} x")


BENCHMARKS = {"plan": plan, "step": step}
