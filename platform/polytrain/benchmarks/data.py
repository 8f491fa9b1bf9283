"""`python jobs/bench.py data`: decoders against the floor and torchvision, Ray's streams against torch's DataLoader,
packed storage against files on an S3 store, and what manifests of millions of rows cost."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from polytrain.benchmarks import packed, scale
from polytrain.benchmarks.processes import RunFailedError
from polytrain.progress import Progress

# What the command reaches for: key, comparison, value.
REACHES: tuple[tuple[str, str, float], ...] = (
    ("image.vs_torchvision", ">=", 0.95),
    ("video.cpu_vs_floor", "<=", 1.25),
    ("audio.wav10s_ms", "<=", 0.5),
    *((f"stream.{name}.vs_dataloader", ">=", 0.95) for name in ("image", "video", "audio")),
    *((f"stream.{name}.first_batch_s", "<=", 3.0) for name in ("image", "video", "audio")),
    ("stream.three.first_batch_s", "<=", 8.0),
)

PARTS = ("decoders", "streams", "packed", "scale")

# Modality: the media of its stream.
STREAMED = {"image": "jpeg", "video": "h264", "audio": "aac"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    choices = tuple(STREAMED)
    count = {"type": _positive, "metavar": "N"}
    parser.add_argument("--modality", nargs="+", choices=choices, default=list(choices), help="which to measure")
    parser.add_argument(
        "--examples", **count, help="of a stream's run (as many as ten queues hold), and in the store (400)"
    )
    parser.add_argument("--pairs", **count, default=5, help="runs of Ray and DataLoader in turn (5)")
    parser.add_argument("--decoders", **count, default=os.cpu_count(), help="decoding processes (one a core)")
    parser.add_argument("--repetitions", **count, default=7, help="of each decoder over all files (7)")
    parser.add_argument("--only", choices=PARTS, help="one part of it; --modality and the like are for the first two")
    scale.add_rows(parser)
    parser.add_argument("--json", metavar="FILE", help="write the figures there, one flat object")
    parser.add_argument("--folder", metavar="DIR", help="keep media and runs there (a temporary folder unless given)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def run(options: argparse.Namespace) -> int:
    """Measure and print; missed reaches are said, and are no failure. Returns the exit code."""
    figures: dict[str, float] = {}
    with ExitStack() as stack:
        folder = Path(options.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="polytrain-bench-")))
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{_machine()}", flush=True)
        try:
            for part in (options.only,) if options.only else PARTS:
                figures |= _MEASURES[part](options, folder)
        except RunFailedError as error:
            _say(f"error: {error}")
            return 1
    for modality in options.modality:
        if {f"stream.{modality}.vs_dataloader", *_FLOORS[modality]} <= figures.keys():
            _print_side_by_side(modality, figures, options.decoders)
    if any(key in figures for key, _, _ in REACHES):
        _print_reaches(figures)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _machine() -> str:
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{os.cpu_count()} cores, load {load} before; ratios of one run count, seconds depend on the machine"


def _files(folder: Path, kind: str, most: int | None = None) -> list[Path]:
    from polytrain.benchmarks import media

    count = media.KINDS[kind][2]
    return media.make_files(folder / "media", kind, min(count, most or count))


# --- decoders -------------------------------------------------------------------------------------------------------


def _measure_decoders(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    from polytrain.benchmarks import decoders

    figures: dict[str, float] = {}
    for modality in options.modality:
        if modality == "image":
            files = _files(folder, "jpeg", options.examples)
            of_modality = decoders.measure_image(files, options.repetitions)
            about = "JPEG 500x375 of 110 KB to 224x224; torchvision: decode_jpeg, v2 resize BILINEAR, antialias; ours "
            about += f"equals it to {of_modality['psnr_to_torchvision_db']:.0f} dB"
        elif modality == "video":
            files = _files(folder, "h264", options.examples)
            of_modality = decoders.measure_video(files, options.repetitions)
            about = "H.264 340x256, 200 kbit/s: 32 frames at stride 2 to 224x224, the clip on a key frame"
        else:
            sounds = {kind: _files(folder, kind, options.examples) for kind in ("wav", "aac", "mp3")}
            of_modality = decoders.measure_audio(sounds, options.repetitions)
            about = "10 s: 16 kHz mono WAV; AAC and MP3 of 44.1 kHz stereo to 16 kHz mono"
        _print(f"\n{modality}, one process, CPU time an example\n  {about}")
        _print_figures(of_modality)
        figures |= {f"{modality}.{key}": value for key, value in of_modality.items()}
    return figures


# --- streams --------------------------------------------------------------------------------------------------------


def _measure_streams(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    from polytrain.benchmarks import streams

    runs = folder / "runs"
    runs.mkdir(exist_ok=True)
    figures: dict[str, float] = {}
    files = {name: _files(folder, STREAMED[name], options.examples) for name in options.modality}
    for modality in options.modality:
        examples = options.examples or streams.examples_for(modality, options.decoders)
        recipe = streams.recipe_for(runs, {modality: files[modality]}, {modality: examples}, options.decoders)
        pairs = []
        with Progress(f"{modality} stream and DataLoader in turn", 2 * options.pairs, "runs") as progress:
            for number in range(options.pairs):
                by_side = {}
                # Who comes first changes, or whatever warms up or slows down would favour one.
                for side in ("ray", "dataloader") if number % 2 == 0 else ("dataloader", "ray"):
                    name = f"{modality}-{number}-{side}"
                    by_side[side] = streams.take(side, runs, name, recipe, options.decoders, progress)
                pairs.append((by_side["ray"], by_side["dataloader"]))
        of_stream = streams.measure(pairs)
        _print(
            f"\n{modality} stream, {options.decoders} decoding processes each, {examples:,} examples a run, medians of "
            f"{options.pairs} interleaved pairs"
        )
        _print("  steady: behind the first fifth of a run; CPU: of all processes of a run")
        _print_figures(of_stream)
        _print_breakdown(streams.breakdown([ray for ray, _ in pairs]))
        figures |= {f"stream.{modality}.{key}": value for key, value in of_stream.items()}
    if len(options.modality) > 1:
        figures |= _measure_together(options, runs, files)
    return figures


def _measure_together(options: argparse.Namespace, runs: Path, files: dict[str, list[Path]]) -> dict[str, float]:
    """How long several streams at once take to their first minibatches."""
    from polytrain.benchmarks import streams

    steps = 3
    counted = {2: "two", 3: "three"}[len(files)]
    examples = {name: steps * streams.BATCH_SIZES[name] for name in files}
    recipe = streams.recipe_for(runs, files, examples, options.decoders)
    with Progress(f"{counted} streams at once", options.pairs, "runs") as progress:
        together = [
            streams.take("ray", runs, f"together-{number}", recipe, options.decoders, progress)
            for number in range(options.pairs)
        ]
    steps_to_first = streams.breakdown(together)
    moments = dict(steps_to_first)
    first = moments["first minibatch of every stream taken"] - moments["worker group runs the loop"]
    _print(f"\n{counted} streams at once: first minibatch of each {first:.2f} s after the worker group runs")
    _print_breakdown(steps_to_first)
    return {f"stream.{counted}.first_batch_s": first}


# --- storage --------------------------------------------------------------------------------------------------------


def _measure_packed(options: argparse.Namespace, _folder: Path) -> dict[str, float]:
    _print("\npacked storage against file by file, on an S3 store that counts; a windowed shuffle against a full one")
    return packed.mixing() | packed.requests_if_served(options.examples or packed.EXAMPLES)


def _measure_scale(options: argparse.Namespace, _folder: Path) -> dict[str, float]:
    _print("\nmanifests of many rows")
    return scale.measure_and_print(options.rows, scale.KINDS)[0]


_MEASURES = {
    "decoders": _measure_decoders,
    "streams": _measure_streams,
    "packed": _measure_packed,
    "scale": _measure_scale,
}


# --- printing -------------------------------------------------------------------------------------------------------


def _print(text: str) -> None:
    print(text, flush=True)


def _print_figures(figures: dict[str, float]) -> None:
    for key, value in figures.items():
        _print(f"  {key:<46}{value:>10.3f}")


def _print_breakdown(steps: list[tuple[str, float]]) -> None:
    _print("  from the start of the process, seconds:")
    for what, seconds in sorted(steps, key=lambda step: step[1]):
        _print(f"    {seconds:6.2f}  {what}")


# Modality: the keys of what decoding alone costs, and our decoder, CPU milliseconds an example.
_FLOORS = {
    "image": ("image.floor_cpu_ms", "image.ours_cpu_ms"),
    "video": ("video.floor_cpu_ms", "video.ours_cpu_ms"),
    "audio": ("audio.aac10s_floor_ms", "audio.aac10s_ms"),
}


_ROWS = {
    "steady, examples/s": "examples_per_s",
    "CPU, ms an example": "cpu_ms",
    "first batch, s": "first_batch_s",
    "whole run, s": "whole_run_s",
}


def _print_side_by_side(modality: str, figures: dict[str, float], decoders: int) -> None:
    """A modality's figures in one table. What only decodes has the rate that its CPU time allows so many cores."""
    stream = f"stream.{modality}."
    of_decoders = {"cpu_ms": [figures[key] for key in _FLOORS[modality]]}
    of_decoders["examples_per_s"] = [1000 * decoders / ms for ms in of_decoders["cpu_ms"]]
    _print(f"\n{modality}, {decoders} decoding processes")
    titles = ("floor", "ours", "DataLoader", "stream", "stream/DataLoader", "stream/floor")
    _print(" " * 22 + "".join(f"{title:>19}" for title in titles))
    for title, key in _ROWS.items():
        floor, ours = of_decoders.get(key, (math.nan, math.nan))
        ratio = "vs_dataloader" if key == "examples_per_s" else f"{key}_vs_dataloader"
        ray, loader = figures[stream + key], figures[f"{stream}dataloader_{key}"]
        cells = (floor, ours, loader, ray, figures[stream + ratio], ray / floor)
        _print(f"  {title:<20}" + "".join(f"{'' if math.isnan(cell) else f'{cell:.2f}':>19}" for cell in cells))


def _print_reaches(figures: dict[str, float]) -> None:
    _print("\nreaches")
    for key, comparison, wanted in REACHES:
        if key in figures:
            reached = figures[key] >= wanted if comparison == ">=" else figures[key] <= wanted
            _print(f"  {key:<34}{figures[key]:>8.3f}  {comparison} {wanted:<5} {'reached' if reached else 'MISSED'}")
