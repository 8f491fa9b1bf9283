"""`jobs/prepare.py stats`: how a collection's inputs are to be standardised, as the recipe's lines to paste."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from dataclasses import MISSING, fields, replace
from typing import TYPE_CHECKING, Any

from polytrain.data import manifest as manifests
from polytrain.data.manifest import Manifest, ManifestError
from polytrain.modalities import Audio, Geometry, Image, Video
from polytrain.preview import Decoding, recipe_named

if TYPE_CHECKING:
    from polytrain.data.statistics import Statistics
    from polytrain.recipe import Recipe

PAPER: dict[str, Geometry] = {
    "image": Image(size=(224, 224), patch=(16, 16)),
    "video": Video(frames=32, stride=2, size=(224, 224), tubelet=(4, 16, 16)),
    "audio": Audio(sample_rate=16000, seconds=8.0, mel_bins=128, patch=(16, 16)),
}
"""PolyViT's own geometries, where no recipe is given."""

BAD_NAMED = 5


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifests", metavar="MANIFEST", nargs="*",
                        help="of one modality, counted together; unless given, those of --recipe's tasks")  # fmt: skip
    parser.add_argument("--recipe", help="its geometry decodes; unless given, the paper's does (audio: 8 s, 16 kHz)")
    parser.add_argument("--task", help="the recipe's task; unless given, all its audio tasks")
    parser.add_argument("--examples", type=int, default=20_000, metavar="N",
                        help="at most so many of each training split, drawn (20000)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="which examples and which clips are drawn (0)")


def run(options: argparse.Namespace) -> None:
    """Computes and prints. Raises ManifestError."""
    if options.examples < 1:
        raise ManifestError(f"--examples {options.examples}: at least 1 is needed")
    recipe, task = recipe_named(options.recipe, options.task)
    uris = options.manifests or ([task.manifest] if task else _sounds(recipe))
    if not uris:
        raise ManifestError("no manifest: name one or more, or a --recipe with audio tasks")
    read = [manifests.read(uri) for uri in uris]
    if mixed := {manifest.modality for manifest in read} - {read[0].modality}:
        raise ManifestError(f"{uris[0]} is {read[0].modality}, others are {', '.join(mixed)}; one modality at a time")
    modality = read[0].modality
    geometry = recipe.modalities.in_use().get(modality) if recipe else PAPER[modality]
    if geometry is None:
        raise ManifestError(f"{options.recipe} has no modalities.{modality}, which {uris[0]} is")
    print(told(geometry, read, _computed(geometry, read, options)))


def _sounds(recipe: Recipe | None) -> list[str]:
    """The manifests of all audio tasks: they share one geometry, and so one mean and deviation."""
    return [task.manifest for task in recipe.tasks.values() if task.modality == "audio"] if recipe else []


def _computed(geometry: Geometry, read: list[Manifest], options: argparse.Namespace) -> Statistics:
    # Imports torch: a mistake in the words above is told without waiting for it.
    import torch

    from polytrain.data.examples import examples_of
    from polytrain.data.statistics import input_statistics

    torch.set_num_threads(1)  # decoding has the cores
    line = Decoding(sys.stderr)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.ExitStack() as stack:
        collections = [stack.enter_context(contextlib.closing(examples_of(manifest)["train"])) for manifest in read]
        try:
            found = input_statistics(
                geometry,
                collections,
                most=options.examples,
                seed=options.seed,
                threads=cores,
                progress=lambda done, total: line.show({"done": done, "total": total}),
            )
        except ValueError as error:
            raise ManifestError(f"{read[0].uri}: {error}") from None
    line.say(f"{found.examples:,} examples decoded")
    for name, reason in found.bad[:BAD_NAMED]:
        line.say(f"can't be decoded: {name}: {reason}")
    if len(found.bad) > BAD_NAMED:
        line.say(f"... and {len(found.bad) - BAD_NAMED:,} more can't be decoded")
    return found


def told(geometry: Geometry, read: list[Manifest], found: Statistics) -> str:
    """What was found, in words and, of sounds, as the lines of a recipe."""
    names = ", ".join(manifest.task for manifest in read)
    of = sum(manifest.sizes["train"] for manifest in read)
    counted = f"{names}: {found.examples:,} of {of:,} training examples"
    if not isinstance(geometry, Audio):
        mean, deviation = (", ".join(f"{value:+.3f}" for value in values) for values in (found.mean, found.deviation))
        return (
            f"{counted}; red, green, blue in [-1, 1]: mean {mean}, deviation {deviation.replace('+', '')}\n"
            f"Recipes have no key for these: pixels are scaled to [-1, 1] whatever the collection."
        )
    mean, deviation = round(found.mean[0], 2), round(found.deviation[0], 2)
    if not deviation:
        return f"{counted}; log-mel energies are {mean:.2f} throughout: silence, which can't be standardised"
    before = (found.mean[0] - geometry.mean) / (2 * geometry.deviation), found.deviation[0] / (2 * geometry.deviation)
    return "\n".join(
        [
            f"{counted}; log-mel energies: mean {mean:.2f}, deviation {deviation:.2f}",
            f"With mean {geometry.mean:g} and deviation {geometry.deviation:g}, as now, the model gets inputs of mean "
            f"{before[0]:.2f} and deviation {before[1]:.2f}; with these of 0.00 and 0.50.",
            "In the recipe:",
            "modalities:",
            f"  audio: {_flow(replace(geometry, mean=mean, deviation=deviation))}",
        ]
    )


def _flow(geometry: Audio) -> str:
    """A geometry as a recipe writes it: {sample_rate: 16000, ...}; other defaults than mean and deviation left out."""

    def text(value: Any) -> str:
        return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else f"{value:g}"

    kept = [
        (each.name, getattr(geometry, each.name))
        for each in fields(geometry)
        if each.default is MISSING or each.name in ("mean", "deviation") or getattr(geometry, each.name) != each.default
    ]
    return "{" + ", ".join(f"{name}: {text(value)}" for name, value in kept) + "}"
