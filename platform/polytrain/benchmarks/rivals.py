"""Rivals measured in turn within one run, so that ratios survive a busy machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from polytrain.progress import Progress


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


def cpu_seconds(rivals: dict[str, Callable[[], int]], repetitions: int) -> dict[str, float]:
    """Median CPU seconds of this process an example, for rivals that run in turn and return how many they did."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    with Progress("decoding", (repetitions + 1) * len(rivals), "rounds") as progress:
        for repetition in range(repetitions + 1):
            for name, run in rivals.items():
                started = time.process_time()
                examples = run()
                if repetition:  # one to warm up
                    seconds[name].append((time.process_time() - started) / examples)
                progress.add()
    return {name: statistics.median(values) for name, values in seconds.items()}
