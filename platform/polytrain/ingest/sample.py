"""`jobs/prepare.py sample`: the sample suite."""

from __future__ import annotations

import argparse

from polytrain.data import manifest, sample_suite
from polytrain.progress import Progress, ticking


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="data/sample", help="folder of the suite (data/sample)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all its media (0)")


def run(options: argparse.Namespace) -> None:
    with Progress("making the sample suite", None, "files") as progress, ticking(progress):

        def counted(done: int, total: int) -> None:
            progress.total = total
            progress.to(done)

        paths = sample_suite.make(options.out, options.seed, counted=counted)
    for path in paths:
        m = manifest.read(path)
        sizes = "  ".join(f"{name} {size:>4}" for name, size in m.sizes.items())
        print(f"{m.task:<12} {m.modality:<6} {len(m.classes):>2} classes  {sizes}  {path}")
