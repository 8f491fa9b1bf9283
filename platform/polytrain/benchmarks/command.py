"""`python jobs/bench.py NAME`: a table of benchmarks. A new one is a module with its arguments and an entry here."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from polytrain.benchmarks import data, packed, plan, scale, step
from polytrain.command_line import told


def bench_command(usage: str, arguments: Sequence[str] | None = None) -> int:
    """`python jobs/bench.py NAME`. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python jobs/bench.py", description=usage)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME", help="what to measure")
    for name, (about, add_arguments, _) in BENCHMARKS.items():
        add_arguments(names.add_parser(name, help=about, description=about))
    options = parser.parse_args(arguments)
    return told(lambda: BENCHMARKS[options.name][2](options))


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    """Measures one thing only."""


def _run(benchmark: Callable[[], None]) -> Callable[[argparse.Namespace], int]:
    def run(_: argparse.Namespace) -> int:
        benchmark()
        return 0

    return run


# Name: what it measures, its arguments, what runs it and returns the exit code.
BENCHMARKS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "data": ("decoders, streams and storage against their opponents", data.add_arguments, data.run),
    "packed": ("packed storage against files on an S3 store, and its shuffle", packed.add_arguments, packed.run),
    "plan": ("start-up of the paper's nine tasks, and any step's minibatch", _no_arguments, _run(plan.plan)),
    "scale": ("manifests of millions of rows: time and memory to the first batch", scale.add_arguments, scale.run),
    "step": ("a CPU worker's step: cut by examples, or by torch's threads", _no_arguments, _run(step.step)),
}
