"""`jobs/prepare.py preview`: a contact sheet of a manifest, by which a person judges a collection before training."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import av
import numpy as np
import pyarrow.compute as pc
from PIL import Image as Pillow

from polytrain import sheets
from polytrain.class_counts import ClassCounts
from polytrain.data import manifest as manifests
from polytrain.data.decode import DecodeError, decode
from polytrain.data.examples import Examples, examples_of
from polytrain.data.manifest import Manifest, ManifestError
from polytrain.data.media_file import MAX_PIXELS, only_stream, open_container, time_limit
from polytrain.modalities import Audio, Geometry, Image, Video
from polytrain.report import LiveLine
from polytrain.sheets import Heading, Shown

if TYPE_CHECKING:
    from polytrain.recipe import Recipe, Task

SIDE = 320
"""Pixels of the longer side of pictures and frames, where no recipe says how large they are."""
LONGEST_S = 10.0
"""Seconds of sound, and of video, that are shown where no recipe says how much is."""
DECODE_LIMIT_S = 30.0


# ---------------------------------------------------------------------------------------------------- which examples


def chosen(manifest: Manifest, split: str, count: int, seed: int) -> np.ndarray:
    """Rows of a split, ascending by class: as many of one class as of another, as far as there are any.

    An example of several classes counts for its rarest. With more classes than `count`, classes are drawn.
    """
    groups = _groups(manifest, split)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(groups))
    by_class = shuffled[np.argsort(groups[shuffled], kind="stable")]
    _, starts, sizes = np.unique(groups[by_class], return_index=True, return_counts=True)
    turn = np.arange(len(groups)) - np.repeat(starts, sizes)  # first of its class, second of its class, ...
    luck = np.repeat(rng.permutation(len(sizes)), sizes)
    rows = by_class[np.lexsort((luck, turn))[:count]]
    return rows[np.lexsort((rows, groups[rows]))]


def _groups(manifest: Manifest, split: str) -> np.ndarray:
    """The class that each row of a split counts for, [rows] int64; the number of classes for a row without any."""
    table = manifest.split(split)
    if not manifest.multi_label:
        return table["label"].to_numpy().astype(np.int64)
    labels = table["labels"].combine_chunks()
    flat, rows = pc.list_flatten(labels).to_numpy(), pc.list_parent_indices(labels).to_numpy()
    frequency = np.bincount(flat, minlength=len(manifest.classes))
    order = np.lexsort((frequency[flat], rows))
    found, first = np.unique(rows[order], return_index=True)
    groups = np.full(len(table), len(manifest.classes), np.int64)
    groups[found] = flat[order][first]
    return groups


def class_counts(manifest: Manifest) -> ClassCounts:
    """Examples of each class in each split that has any."""
    splits, without = {}, {}
    for split, size in manifest.sizes.items():
        if not size:
            continue
        table = manifest.split(split)
        if manifest.multi_label:
            labels = table["labels"].combine_chunks()
            flat = pc.list_flatten(labels)
            without[split] = int(pc.sum(pc.equal(pc.list_value_length(labels), 0)).as_py())
        else:
            flat = table["label"]
        splits[split] = np.bincount(flat.to_numpy(), minlength=len(manifest.classes))
    return ClassCounts(manifest.classes, splits, without)


# ------------------------------------------------------------------------------------------------------ one example


@dataclass(frozen=True)
class About:
    """What a file's header says of it."""

    text: str = ""
    height: int = SIDE
    width: int = SIDE
    frames: int = 0
    rate: float = 25.0
    seconds: float = 0.0


def about(modality: str, content: _Content) -> About:
    """Size and length of a media file, upright; the defaults where its header can't be read (decoding says why)."""
    if isinstance(content, OSError):
        return About()
    try:
        with time_limit(DECODE_LIMIT_S) as deadline:
            if modality == "image":
                return _about_image(content)
            with open_container(content, deadline) as container:
                stream = only_stream(container, modality)
                length = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 1e6
                seconds = float(length)
                if modality == "audio":
                    rate, channels = stream.codec_context.sample_rate, stream.codec_context.layout.nb_channels
                    kind = {1: "mono", 2: "stereo"}.get(channels, f"{channels} channels")
                    return About(f"{seconds:.3g} s, {rate / 1000:g} kHz {kind}", seconds=seconds)
                frame = next(container.decode(stream))
                height, width = frame.height, frame.width
                if frame.rotation % 180:
                    height, width = width, height
                rate = float(stream.average_rate or 25)
                return About(f"{width} × {height}, {seconds:.3g} s, {rate:.3g} frames/s", height, width,
                             stream.frames or round(seconds * rate), rate, seconds)  # fmt: skip
    except (DecodeError, OSError, ValueError, SyntaxError, EOFError, StopIteration, av.FFmpegError):
        return About()
    except Pillow.DecompressionBombError:
        return About(f"over {MAX_PIXELS:,} pixels")


def _about_image(source: str | bytes) -> About:
    with Pillow.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
        width, height = picture.size
        if picture.getexif().get(0x0112, 1) >= 5:  # EXIF orientations that lie on their side
            width, height = height, width
        return About(f"{width} × {height}", height, width)


# --------------------------------------------------------------------------------- geometries where no recipe has one


def whole(modality: str, files: Sequence[About]) -> list[Geometry]:
    """A geometry for each file that shows it as it is: its proportions, and its first LONGEST_S seconds evenly."""
    if modality == "image":
        return [Image(size=_proportions(file), patch=(1, 1)) for file in files]
    if modality == "video":
        return [_whole_clip(file) for file in files]
    longest = min(LONGEST_S, max([file.seconds for file in files if file.seconds] or [1.0]))
    seconds = max(0.1, round(longest, 2))
    return [Audio(sample_rate=16000, seconds=seconds, mel_bins=128, patch=(1, 1))] * len(files)


def _proportions(file: About) -> tuple[int, int]:
    scale = min(1.0, SIDE / max(file.height, file.width))
    return max(1, round(file.height * scale)), max(1, round(file.width * scale))


def _whole_clip(file: About) -> Video:
    frames = sheets.FilmStrips.frames
    covered = min(file.frames or 1, max(1, round(LONGEST_S * file.rate)))
    stride = max(1, (covered - 1) // (frames - 1))
    height, width = _proportions(file)
    return Video(frames=min(frames, covered), stride=stride, size=(height, width), tubelet=(1, 1, 1))


# ------------------------------------------------------------------------------------------------------- the sheet


def preview(
    manifest: Manifest, *, split: str = "train", count: int = 24, seed: int = 0, geometry: Geometry | None = None
) -> Pillow.Image:
    """The contact sheet of a split: `count` examples as `geometry` decodes them (None: as they are), and all classes.

    Raises ManifestError for a split without examples.
    """
    sizes = manifest.sizes
    if not sizes[split]:
        has = ", ".join(name for name, size in sizes.items() if size)
        raise ManifestError(f"{manifest.uri}: has no example in {split}; it has {has}")
    rows = chosen(manifest, split, count, seed).tolist()
    drawn_as, shown = shown_examples(manifest, split, rows, geometry, Decoding(sys.stderr))
    bad = sum(bool(one.reason) for one in shown)
    which = f"{len(rows)} of {sizes[split]:,} in {split}, drawn evenly over the classes with seed {seed}"
    if len(rows) == sizes[split]:
        which = f"all {len(rows)} in {split}" if len(rows) > 1 else f"the only one in {split}"
    heading = Heading(
        manifest.task,
        (
            f"{manifest.modality}{', multi-label' if manifest.multi_label else ''}: "
            + ", ".join(f"{size:,} {name}" for name, size in sizes.items() if size),
            f"Shown: {which}; {_said(geometry) if geometry else _WHOLE[manifest.modality]}",
        ),
        warning=f"{bad} of these {len(rows)} can't be decoded" if bad else "",
    )
    return sheets.contact_sheet(drawn_as, heading, shown, class_counts(manifest))


def shown_examples(
    manifest: Manifest,
    split: str,
    rows: Sequence[int],
    geometry: Geometry | None = None,
    line: LiveLine | None = None,
) -> tuple[Geometry, list[Shown]]:
    """These rows of a split as a sheet draws them, and the geometry (of sounds: the one of all) that they came by.

    `line` is told how many are decoded.
    """
    examples = examples_of(manifest)[split]
    with contextlib.closing(examples), ThreadPoolExecutor(min(8, len(rows))) as pool:
        contents = list(pool.map(partial(_content, examples), rows))
        files = list(pool.map(partial(about, manifest.modality), contents))
        geometries = [geometry] * len(rows) if geometry else whole(manifest.modality, files)
        clips = map(examples.clip, rows)
        decoded = []
        for found in pool.map(_decoded, geometries, contents, clips):
            decoded.append(found)
            if line is not None:
                line.show({"done": len(decoded), "total": len(rows)})
    if line is not None:
        line.say(f"{sum(not reason for _, reason in decoded):,} examples decoded")
    if manifest.modality == "audio":
        decoded = _log_mels(geometries[0], decoded)
    shown = [
        Shown(sheets.class_names(manifest.classes, labels), ", ".join(filter(None, (name, file.text))), *found)
        for labels, name, file, found in zip(
            examples.labels(rows), map(_short_name, map(examples.name, rows)), files, decoded, strict=True
        )
    ]
    return geometries[0], shown


def _short_name(name: str) -> str:
    return urlsplit(name).path.rpartition("/")[2] if "://" in name else os.path.basename(name)


class Decoding(LiveLine):
    """How many examples are decoded, on stderr."""

    @staticmethod
    def format(progress: Mapping[str, Any]) -> str:
        return f"decoding: {progress['done']:,} of {progress['total']:,} examples"


_WHOLE = {
    "image": "whole pictures in their own proportions",
    "video": f"frames evenly from up to {LONGEST_S:g} s around the centre, in their own proportions",
    "audio": f"up to {LONGEST_S:g} s around the centre, at 16 kHz with 128 mel bins",
}


def _said(geometry: Geometry) -> str:
    """How a recipe's geometry decodes, in words."""
    if isinstance(geometry, Audio):
        return (
            f"the recipe's audio: {geometry.seconds:g} s around the centre at {geometry.sample_rate / 1000:g} kHz, "
            f"{geometry.mel_bins} mel bins"
        )
    height, width = geometry.size
    if isinstance(geometry, Video):
        shown = " (up to 6 are shown)" if geometry.frames > sheets.FilmStrips.frames else ""
        return f"the recipe's video: {geometry.frames} frames{shown}, stride {geometry.stride}, {width} × {height}"
    return f"the recipe's image: {width} × {height}"


_Content = bytes | str | OSError
"""The media of an example, or why they can't be had."""

_Found = tuple[np.ndarray | None, str]
"""An example's array, or the reason why there is none."""


def _content(examples: Examples, example: int) -> _Content:
    try:
        return examples.content(example)
    except OSError as error:
        return error


def _decoded(geometry: Geometry, content: _Content, clip: tuple[float | None, float | None]) -> _Found:
    if isinstance(content, OSError):
        return None, "no such file" if isinstance(content, FileNotFoundError) else str(content)
    try:
        start_s, end_s = clip
        return decode(geometry, content, start_s=start_s, end_s=end_s, time_limit_s=DECODE_LIMIT_S)[0], ""
    except DecodeError as error:
        return None, str(error)


def _log_mels(geometry: Audio, found: Sequence[_Found]) -> list[_Found]:
    """Waveforms [samples] become log-mel energies [frames, mel bins], natural logarithms that are not normalised."""
    import torch

    from polytrain.data.spectrogram import LogMel

    log_mel = LogMel(replace(geometry, mean=0.0, deviation=0.5))
    return [
        (None if sound is None else log_mel(torch.from_numpy(sound.copy())[None])[0, 0].numpy(), reason)
        for sound, reason in found
    ]


# ------------------------------------------------------------------------------------------------------ the command


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", metavar="MANIFEST", nargs="?", help="unless given, that of --task in --recipe")
    parser.add_argument("--recipe", help="show what its geometry decodes, not whole files")
    parser.add_argument("--task", help="the recipe's task whose manifest is shown")
    parser.add_argument("--split", choices=manifests.SPLITS, default="train", help="which examples are shown (train)")
    parser.add_argument("--examples", type=_at_least_one, default=24, metavar="N", help="how many (24)")
    parser.add_argument("--seed", type=int, default=0, help="which are drawn (0)")
    parser.add_argument("--out", required=True, metavar="SHEET.png", help="the sheet")


def _at_least_one(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{value}: 1 to 1000 fit a sheet")
    return value


def run(options: argparse.Namespace) -> None:
    """Draws the sheet. Raises ManifestError."""
    if not options.out.lower().endswith(".png"):
        raise ManifestError(f"--out {options.out}: a sheet is a PNG file; its name should end in .png")
    recipe, task = recipe_named(options.recipe, options.task)
    uri = options.manifest or (task and task.manifest)
    if uri is None:
        raise ManifestError("no manifest: name one, or a --recipe and its --task")
    manifest = manifests.read(uri)
    geometry = None
    if recipe is not None:
        if task is not None and task.modality != manifest.modality:
            raise ManifestError(f"--task {options.task} is {task.modality}, {uri} is {manifest.modality}")
        geometry = recipe.modalities.in_use().get(manifest.modality)
        if geometry is None:
            raise ManifestError(f"{options.recipe}: has no modalities.{manifest.modality}, which {uri} is")
    sheet = preview(manifest, split=options.split, count=options.examples, seed=options.seed, geometry=geometry)
    sheets.save(sheet, options.out)
    print(f"{manifest.task}: {options.out}, {sheet.width} x {sheet.height} pixels")


def recipe_named(path: str | None, task: str | None) -> tuple[Recipe | None, Task | None]:
    """The recipe that --recipe names, and its task that --task names. Raises ManifestError."""
    if path is None:
        if task is not None:
            raise ManifestError("--task names a task of --recipe, which is not given")
        return None, None
    from polytrain.recipe import RecipeError
    from polytrain.recipe_file import load

    try:
        recipe = load(path)
    except RecipeError as error:
        raise ManifestError(str(error)) from None
    if task is not None and task not in recipe.tasks:
        raise ManifestError(f"--task {task}: {path} has {', '.join(recipe.tasks)}")
    return recipe, recipe.tasks[task] if task else None
