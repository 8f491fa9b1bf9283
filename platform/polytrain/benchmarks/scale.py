"""`python jobs/bench.py scale`: what manifests of millions of rows cost, file by file and packed; synthetic rows.

For each size two processes are measured: the driver (reads the manifest, plans a million steps, makes what is sent to
decode workers) and a fresh decode worker (receives it, decodes the first minibatch of 64). Anonymous memory is what a
process has to itself; mapped pages of the manifest are the kernel's to take back.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from polytrain.progress import Progress, ticking

CHUNK = 1 << 20
GROUP, SHARD = 40, 64
"""Examples of a row group, row groups of a shard."""

ROWS = (1_000_000, 10_000_000, 100_000_000)
CLASSES = 1000
STEPS = 1_000_000
KINDS = ("files", "packed")
DISK_PER_ROW = 100
"""Bytes an example that a size takes at most below TMPDIR: the manifest and what is mapped of it."""

GROWTH_NOISE = 1.15
LIMIT = (
    "disk under TMPDIR, some 50 bytes a row once a machine, and memory of a few dozen bytes a row group where packed; "
    "a larger disk and larger row groups lift it"
)


# Title: figure, unit, digits.
COLUMNS = {
    "manifest": ("manifest_mb", "MB", 1),
    "read": ("read_s", "s", 1),
    "its CPU": ("read_cpu_s", "s", 1),
    "plan": ("plan_s", "s", 2),
    "sent": ("sent_mb", "MB", 1),
    "driver": ("driver_mb", "MB", 0),
    "its peak": ("driver_peak_mb", "MB", 0),
    "worker": ("worker_mb", "MB", 0),
    "first batch": ("first_batch_s", "s", 2),
    "CPU of it": ("first_batch_cpu_s", "s", 2),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_rows(parser)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS), help="of storage")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, one flat object")


def add_rows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", nargs="+", type=_count, default=list(ROWS), metavar="N",
                        help="sizes of the manifests (1M 10M 100M)")  # fmt: skip


def _count(text: str) -> int:
    units = {"k": 10**3, "m": 10**6}
    number, unit = (text[:-1], units[text[-1].lower()]) if text[-1].lower() in units else (text, 1)
    try:
        rows = int(number) * unit
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rows; 10M would be") from None
    if rows < 100 * CLASSES:
        raise argparse.ArgumentTypeError(f"{text!r} is too small to tell anything; 1M would do")
    return rows


def run(options: argparse.Namespace) -> int:
    """Measure and print. Returns the exit code: 1 where a size did not fit this machine's disk."""
    figures, left_out = measure_and_print(options.rows, options.kind)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if left_out else 0


def measure_and_print(sizes: Sequence[int], kinds: Sequence[str]) -> tuple[dict[str, float], int]:
    """Figures of each size and kind, and how many were left out for want of disk space."""
    figures: dict[str, float] = {}
    found: dict[str, dict[int, dict[str, float]]] = {kind: {} for kind in kinds}
    left_out = 0
    print("".join(f"{title:>13}" for title in ("rows", "stored as", *COLUMNS)))
    for rows in sizes:
        for kind in kinds:
            needed = DISK_PER_ROW * rows
            if shutil.disk_usage(tempfile.gettempdir()).free < 2 * needed:
                print(f"{rows:,} {kind}: left out, wants {2e-9 * needed:.0f} GB free in {tempfile.gettempdir()}")
                left_out += 1
                continue
            of_size = found[kind][rows] = measure(rows, kind)
            cells = (f"{of_size[name]:.{digits}f} {unit}" for name, unit, digits in COLUMNS.values())
            print("".join(f"{cell:>13}" for cell in (f"{rows:,}", kind, *cells)), flush=True)
            figures |= {f"scale.{kind}.{rows}.{name}": value for name, value in of_size.items()}
    for kind, by_rows in found.items():
        for fewer, more in pairwise(sorted(by_rows)):
            print(f"{kind}, {_growth(fewer, more, by_rows)}")
    print(f"limit: {LIMIT}", flush=True)
    return figures, left_out


def _growth(fewer: int, more: int, found: dict[int, dict[str, float]]) -> str:
    """How the figures grew with the rows, and which of them grew faster."""
    factor = more / fewer
    grown = {title: found[more][name] / found[fewer][name] for title, (name, _, _) in COLUMNS.items()}
    faster = [title for title, growth in grown.items() if growth > GROWTH_NOISE * factor]
    said = ", ".join(f"{title} {growth:.1f}" for title, growth in grown.items())
    return f"{factor:g} x the rows: {said} x; {' and '.join(faster) or 'nothing'} grew faster than the rows"


def measure(rows: int, kind: str) -> dict[str, float]:
    """One size, in processes of its own; nothing of it stays."""
    with tempfile.TemporaryDirectory(prefix="polytrain-scale-") as folder:
        size = write_manifest(Path(folder), rows, packed=kind == "packed")
        found = {"manifest_mb": size / 1e6}
        # The worker begins while the driver still holds the mapped rows, as in a run.
        driver = subprocess.Popen(_process("_driver", folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            with Progress(f"measuring {rows:,} rows, {kind}", 2, "processes") as progress, ticking(progress):
                found |= _told(driver.stdout.readline(), "driver")
                progress.add()
                worker = subprocess.run(_process("_worker", folder), stdout=subprocess.PIPE, text=True, check=False)
                found |= _told(worker.stdout, "worker")
        finally:
            driver.stdin.close()
            driver.wait()
    return found


def _process(part: str, folder: str) -> list[str]:
    code = f"import pathlib, sys; from polytrain.benchmarks import scale; scale.{part}(pathlib.Path(sys.argv[1]))"
    return [sys.executable, "-c", code, folder]


def _told(line: str, who: str) -> dict[str, float]:
    if not line:
        raise RuntimeError(f"the {who} ended without a figure; what it said stands above")
    return json.loads(line)


# --- what is measured -----------------------------------------------------------------------------------------------


def write_manifest(folder: Path, rows: int, *, packed: bool) -> int:
    """A manifest whose every row leads to one and the same picture, written some rows at a time; returns its bytes.

    One row in a hundred is val and one test: scattered over the file, or behind the others where packed.
    """
    from PIL import Image

    from polytrain.data.packed import GROUPS_KEY, groups_metadata

    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "a.png")
    counts = {"train": rows - 2 * (rows // 100), "val": rows // 100, "test": rows // 100}
    metadata = {
        b"polytrain.task": b"many",
        b"polytrain.modality": b"image",
        b"polytrain.classes": json.dumps([f"class {n}" for n in range(CLASSES)]).encode(),
        b"polytrain.format_version": b"1",
    }
    if packed:
        metadata[GROUPS_KEY] = groups_metadata({split: _shards(count) for split, count in counts.items()})
    schema = pa.schema([("path", pa.string()), ("label", pa.int32()), ("split", pa.string())], metadata)
    ends = np.cumsum(list(counts.values()))
    with (
        pq.ParquetWriter(folder / "manifest.parquet", schema, compression="zstd") as writer,
        Progress("writing a manifest", rows, "rows") as progress,
    ):
        for start in range(0, rows, CHUNK):
            number = np.arange(start, min(rows, start + CHUNK))
            # "x/../a.png" is a.png: every path is different and there.
            path = pc.binary_join_element_wise("n", pa.array(number).cast(pa.string()), "/../a.png", "")
            split = np.searchsorted(ends, number, side="right") if packed else np.maximum(number % 100 - 97, 0)
            names = pa.array(list(counts)).take(pa.array(split))
            writer.write_table(pa.table([path, pa.array((number % CLASSES).astype(np.int32)), names], schema=schema))
            progress.add(len(number))
    return (folder / "manifest.parquet").stat().st_size


def _shards(count: int) -> list[list[int]]:
    sizes = [GROUP] * (count // GROUP) + ([count % GROUP] if count % GROUP else [])
    return [sizes[start : start + SHARD] for start in range(0, len(sizes), SHARD)]


def _driver(folder: Path) -> None:
    """What a driver does, in its order; then wait until nobody needs the mapped rows any more."""
    from polytrain.benchmarks.packed import source_of
    from polytrain.data import manifest as manifests
    from polytrain.data.stream import task_ranges

    started, begun = time.perf_counter(), time.process_time()
    manifest = manifests.read(folder / "manifest.parquet")
    read, used = time.perf_counter(), time.process_time()
    source = source_of(manifest, 32, STEPS)
    source.plan.train(0)
    task_ranges(source, "image", 0, 1)
    planned = time.perf_counter()
    sent = pickle.dumps(source, protocol=5)
    (folder / "source").write_bytes(sent)
    _link_shards(folder, source)
    print(
        json.dumps(
            {
                "read_s": read - started,
                "read_cpu_s": used - begun,
                "plan_s": planned - read,
                "sent_mb": len(sent) / 1e6,
                "driver_mb": _memory("RssAnon"),
                "driver_peak_mb": _memory("VmHWM"),
            }
        ),
        flush=True,
    )
    sys.stdin.read()


def _link_shards(folder: Path, source: object) -> None:
    """The shards that the first minibatch needs, all the same file."""
    plan, packed = source.plan, source.media[0].splits["train"].packed
    if packed is None:
        return
    content = (folder / "a.png").read_bytes()
    with pq.ParquetWriter(folder / "shard", pa.schema([("data", pa.binary())])) as writer:
        for _ in range(SHARD):
            writer.write_table(pa.table({"data": pa.array([content] * GROUP, pa.binary())}))
    first = plan.window(0, 0)
    for group in [*first.groups, *plan.window(0, first.size).groups]:
        uri = Path(packed.uri(packed.shard(int(group))[0]))
        if not uri.exists():
            os.link(folder / "shard", uri)


def _worker(folder: Path) -> None:
    """What a decode worker does before its first minibatch is there."""
    from polytrain.data.reading import read_minibatches

    started, begun = time.perf_counter(), time.process_time()
    source = pickle.loads((folder / "source").read_bytes())
    next(read_minibatches(source, "image", 0, 0, 1, 1))
    found = {"first_batch_s": time.perf_counter() - started, "first_batch_cpu_s": time.process_time() - begun}
    print(json.dumps(found | {"worker_mb": _memory("RssAnon"), "worker_rss_mb": _memory("VmRSS")}))
    source.media[0].splits["train"].close()


def _memory(name: str) -> float:
    """A line of /proc/self/status, in megabytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    return float("nan")
