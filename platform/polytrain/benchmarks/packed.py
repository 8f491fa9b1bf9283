"""Packed collections against file by file on an S3 store that counts; a windowed shuffle against a full one."""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from polytrain.benchmarks.object_store import CountingStore
from polytrain.data import manifest as manifests
from polytrain.data import storage
from polytrain.data.examples import examples_of
from polytrain.data.packed import packed_splits
from polytrain.data.reading import StreamSource, TaskMedia, read_minibatches
from polytrain.modalities import Image
from polytrain.packing import Layout, pack
from polytrain.plan import Groups, Plan, PlannedTask
from polytrain.progress import Progress
from polytrain.schedule import Budget, make_schedule

EXAMPLES = 400
CLASSES = 20
BATCH = 64
MINIBATCHES_A_TASK = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=("requests", "mixing"), help="half of it")
    parser.add_argument(
        "--examples", type=int, default=EXAMPLES, metavar="N", help=f"of the collection in the store ({EXAMPLES})"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there, one flat object")


def run(options: argparse.Namespace) -> int:
    """Measure and print. Returns the exit code."""
    figures = {} if options.only == "requests" else mixing()
    if options.only != "mixing":
        found = requests_if_served(options.examples)
        if not found:
            return 1
        figures |= found
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def requests_if_served(examples: int) -> dict[str, float]:
    """`requests`, or nothing and a line that says why where the S3 server is not installed."""
    try:
        return requests(examples)
    except ModuleNotFoundError as error:
        print(f"the S3 server of this benchmark is not installed: {error}; pip install 'moto[server]' brings it")
        return {}


def requests(
    examples: int = EXAMPLES, processes: int = 2, window: int = 4, passes: int = 2, batch: int = 8
) -> dict[str, float]:
    """Requests and bytes an example, over whole passes by several decoding processes, packed and file by file.

    Row groups are so small and minibatches so short that the collection is several times what stays on the machine.
    """
    figures: dict[str, float] = {}
    with CountingStore() as store:
        place = store.uri("files/manifest.parquet")
        size = _upload(place, examples)
        packed, _ = pack(place, store.uri("packed"), Layout(shard_bytes=3_200_000, group_bytes=100_000))
        for name, uri, times in (("files", place, 1), ("packed", packed, passes)):
            manifest = manifests.read(uri)
            groups = packed_splits(manifest)
            store.reset()
            started = time.perf_counter()
            _read_passes(manifest, window, processes, times, batch)
            seconds = time.perf_counter() - started
            seen = times * examples
            found = {
                "requests_per_example": store.requests / seen,
                "bytes_per_example": store.bytes / seen,
                "bytes_over_media": store.bytes / seen / (size / examples),
                "examples_per_s": seen / seconds,
            }
            count = f" ({len(groups['train'].sizes)} row groups, {times} passes)" if groups else ""
            print(
                f"{name}{count}: {found['requests_per_example']:.3f} requests an example, "
                f"{found['bytes_per_example']:,.0f} bytes an example, "
                f"{found['bytes_over_media']:.3f} x its file, {found['examples_per_s']:.0f} examples/s",
                flush=True,
            )
            figures |= {f"packed.{name}.{key}": value for key, value in found.items()}
    return figures


def _upload(place: str, examples: int) -> int:
    """Small JPEGs, a manifest sorted by class; returns their bytes together."""
    from PIL import Image as Picture

    rng = np.random.default_rng(0)
    folder, size = storage.parent(place), 0
    for number in range(examples):
        coarse = rng.integers(0, 256, (24, 32, 3), np.uint8)
        buffer = io.BytesIO()
        Picture.fromarray(coarse).resize((320, 240), Picture.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
        content = buffer.getvalue()
        size += len(content)
        storage.write_bytes(storage.join(folder, "media", f"{number:06d}.jpg"), content)
    table = pa.table(
        {
            "path": [f"media/{number:06d}.jpg" for number in range(examples)],
            "label": pa.array(np.arange(examples) * CLASSES // examples, pa.int32()),
            "split": ["train"] * examples,
        }
    )
    names = [f"class {number}" for number in range(CLASSES)]
    manifests.write(place, task="sorted", modality="image", classes=names, table=table)
    return size


def source_of(manifest: manifests.Manifest, window: int, steps: int, batch: int = BATCH) -> StreamSource:
    """A stream of one image task."""
    packed = packed_splits(manifest)
    groups = packed and Groups(packed["train"].sizes, window)
    task = PlannedTask("sorted", "image", batch, manifest.sizes, manifest.digest, 0.0, groups)
    plan = Plan(make_schedule("weighted", [Budget(steps, 0, 0.1)], 0), [task], seed=0, eval_every=steps)
    return StreamSource(plan, (TaskMedia(Image((64, 64), (16, 16)), examples_of(manifest)),), 30.0)


_source: list[StreamSource] = []


def _open(source: StreamSource) -> None:
    _source.append(source)


def _read(first: int, last: int) -> int:
    rows = read_minibatches(_source[0], "image", 0, first, last, 1)
    return sum(row.nbytes for row in rows)


def _read_passes(manifest: manifests.Manifest, window: int, processes: int, passes: int, batch: int) -> None:
    steps = passes * manifest.sizes["train"] // batch
    source = source_of(manifest, window, steps, batch)
    firsts = range(0, steps, MINIBATCHES_A_TASK)
    lasts = [min(first + MINIBATCHES_A_TASK, steps) for first in firsts]
    context = multiprocessing.get_context("spawn")
    seen = 0
    with (
        Progress("reading from the store", steps, "minibatches") as progress,
        ProcessPoolExecutor(processes, context, _open, (source,)) as pool,
    ):
        for last, size in zip(lasts, pool.map(_read, firsts, lasts), strict=True):
            seen += size
            progress.to(last)
    if not seen:
        raise RuntimeError("nothing was read")


# --- how well it is mixed -----------------------------------------------------------------------------------------


def mixing(examples: int = 200_000, classes: int = 1000, group: int = 40, batch: int = 512) -> dict[str, float]:
    """Class mixture of minibatches of one pass over `classes` equal classes, stored sorted or shuffled.

    Dispersion is the mean over minibatches of Pearson's X^2 / (classes - 1): 1 for independent draws, `batch` where a
    minibatch holds one class only. Displacement is the mean distance between an example's place in storage and in the
    pass, over that of a full shuffle (a third of the split).
    """
    figures: dict[str, float] = {}
    labels = np.arange(examples) * classes // examples
    order = np.random.default_rng(0).permutation(examples)
    print(f"{examples:,} examples of {classes} classes, row groups of {group}, minibatches of {batch}")
    print(
        "window  examples in it  dispersion, stored sorted  stored shuffled  displacement  serial correlation, sorted"
    )
    groups = examples // group
    for window in [*(window for window in (1, 4, 8, 16, 32, 64, 128, 512) if window < groups), groups]:
        ids = _pass(examples, group, window, batch)
        sorted_labels = labels[ids]
        sorted_, shuffled = (_dispersion(found, classes, batch) for found in (sorted_labels, labels[order][ids]))
        displacement = np.abs(ids - np.arange(examples)).mean() / (examples / 3)
        means = sorted_labels[: examples // batch * batch].reshape(-1, batch).mean(1)
        serial = float(np.corrcoef(means[:-1], means[1:])[0, 1])
        mixed = f"{sorted_:25.2f}  {shuffled:15.2f}  {displacement:12.2f}  {serial:26.2f}"
        print(f"{window:6d}  {window * group:14,}  {mixed}")
        figures[f"mixing.{window}.sorted"], figures[f"mixing.{window}.shuffled"] = sorted_, shuffled
    full = _dispersion(labels[np.random.default_rng(1).permutation(examples)], classes, batch)
    print(f"  full shuffle                {full:21.2f}  {full:15.2f}          1.00")
    figures["mixing.full"] = full
    return figures


def _pass(examples: int, group: int, window: int, batch: int) -> np.ndarray:
    sizes = np.full(examples // group, group, np.int64)
    task = PlannedTask("t", "image", batch, {"train": examples, "val": 0, "test": 0}, "", 0.0, Groups(sizes, window))
    plan = Plan(make_schedule("weighted", [Budget(1, 0, 0.1)], 0), [task], seed=0, eval_every=1)
    return plan.example_ids(0, np.arange(examples))


def _dispersion(labels: np.ndarray, classes: int, batch: int) -> float:
    rows = labels[: len(labels) // batch * batch].reshape(-1, batch)
    counts = np.stack([np.bincount(row, minlength=classes) for row in rows])
    expected = batch / classes
    return float((((counts - expected) ** 2) / expected).sum(1).mean() / (classes - 1))
