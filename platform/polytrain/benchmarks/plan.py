"""How fast a plan is made, and any of its minibatches found."""

from __future__ import annotations

import time


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
