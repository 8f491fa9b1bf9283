"""The sample suite: eight small tasks over three modalities, made on the spot as real media files.

Every file is drawn from a generator seeded by (seed, task, split, index), so one seed means one suite whatever the
number of processes, and a task can be changed without changing the others. Files lie as
`OUT/<task>/<split>/<class>/<number>.<suffix>`, the way `jobs/prepare.py folder` expects people's own.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import shutil
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from polytrain.data import manifest
from polytrain.data.sample import files, images, sounds, videos

VERSION = 2
"""Goes up whenever the media change: a suite of another version is made anew."""

STAMP = "suite.json"
CHUNK = 100  # files a unit of work: small enough to balance two cores, large enough to hide the hand-over


@dataclass(frozen=True)
class SampleTask:
    """One task as data. `render(rng, label)` gives the array that becomes a file; `sizes` is (train, val, test)."""

    name: str
    modality: str
    classes: tuple[str, ...]
    sizes: tuple[int, int, int]
    suffix: str
    render: Callable[..., np.ndarray]
    labels: Callable[[np.random.Generator], tuple[int, ...]] | None = None  # set: a multi-label task
    about: str = ""

    def split_sizes(self) -> dict[str, int]:
        return dict(zip(manifest.SPLITS, self.sizes, strict=True))


TASKS: dict[str, SampleTask] = {
    task.name: task
    for task in (
        SampleTask(
            "textures", "image", images.TEXTURES, (1500, 120, 200), ".jpg", images.texture, about="stripes, dots, ..."
        ),
        SampleTask("shapes", "image", images.SHAPES, (4000, 100, 200), ".png", images.shape, about="scattered shapes"),
        SampleTask("fabrics", "image", images.FABRICS, (240, 100, 160), ".jpg", images.fabric, about="weaves of cloth"),
        SampleTask(
            "directions",
            "video",
            videos.DIRECTIONS,
            (1000, 100, 160),
            ".mp4",
            videos.direction,
            about="where it drifts",
        ),
        SampleTask("paces", "video", videos.PACES, (300, 100, 160), ".avi", videos.pace, about="how fast it drifts"),
        SampleTask("calls", "audio", sounds.CALLS, (1000, 100, 200), ".flac", sounds.call, about="bird-like calls"),
        SampleTask("scales", "audio", sounds.SCALES, (420, 100, 180), ".wav", sounds.scale, about="runs of notes"),
        SampleTask(
            "yard", "audio", sounds.YARD, (1000, 100, 200), ".mp3", sounds.yard, sounds.yard_labels, "sounds at once"
        ),
    )
}


def generator(seed: int, task: str, split: str, index: int) -> np.random.Generator:
    """The source of all randomness of one file."""
    return np.random.default_rng((seed, zlib.crc32(task.encode()), manifest.SPLITS.index(split), index))


def label_of(task: SampleTask, rng: np.random.Generator, index: int) -> int | tuple[int, ...]:
    """The label (classes take turns, so every split is balanced) or the labels of one file."""
    return index % len(task.classes) if task.labels is None else task.labels(rng)


def path_of(task: SampleTask, split: str, index: int, label: int | tuple[int, ...]) -> str:
    """The file's path relative to the task's folder."""
    folder = split if task.labels is not None else f"{split}/{task.classes[label]}"
    return f"{folder}/{index:05d}{task.suffix}"


def write_file(folder: Path, task: SampleTask, seed: int, split: str, index: int) -> None:
    """Draws one example and writes it below the task's `folder`."""
    rng = generator(seed, task.name, split, index)
    label = label_of(task, rng, index)
    path = folder / path_of(task, split, index, label)
    media = task.render(rng, label)
    if task.modality == "image":
        files.write_image(path, media)
    elif task.modality == "video":
        files.write_video(path, media, videos.RATE)
    else:
        files.write_sound(path, media, sounds.SAMPLE_RATE)


def make(
    out_dir: str | os.PathLike,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    counted: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Makes the suite below `out_dir` and returns its manifests, one a task, in the order of TASKS.

    A whole suite of this version and seed is left as it is; a half-made or older one is made anew. `progress` is
    called now and then with a line for people, `counted` often with files done and files in all. Raises
    FileExistsError where `out_dir` holds something else. Call it from under `if __name__ == "__main__":`, since its
    processes are spawned.
    """
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever comes second waits, then finds a whole suite
        manifests = [out / name / "manifest.parquet" for name in TASKS]
        stamp = {"suite": "polytrain sample", "version": VERSION, "seed": seed, "whole": True}
        found = _read_stamp(out)
        if found == stamp and all(path.exists() for path in manifests):
            return manifests
        if found is None and any(path.name != ".lock" for path in out.iterdir()):
            raise FileExistsError(
                f"{out}: holds files but no {STAMP}, so it is no sample suite; choose an empty folder"
            )
        _write_stamp(out, stamp | {"whole": False})
        for name in TASKS:
            shutil.rmtree(out / name, ignore_errors=True)
        _write_media(out, seed, progress or (lambda line: None), counted or (lambda done, total: None))
        for task, path in zip(TASKS.values(), manifests, strict=True):
            _write_manifest(path, task, seed)
        _write_stamp(out, stamp)
    return manifests


def _write_media(out: Path, seed: int, progress: Callable[[str], None], counted: Callable[[int, int], None]) -> None:
    work = []
    for task in TASKS.values():
        for split, size in task.split_sizes().items():
            for name in [""] if task.labels is not None else task.classes:
                (out / task.name / split / name).mkdir(parents=True, exist_ok=True)
            work += [(task.name, split, start, min(start + CHUNK, size)) for start in range(0, size, CHUNK)]
    # Videos cost most: taken first, they do not leave one core waiting for the other at the end.
    work.sort(key=lambda unit: TASKS[unit[0]].modality != "video")
    done, total = 0, sum(stop - start for _, _, start, stop in work)
    processes = min(len(os.sched_getaffinity(0)), 16) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_write_chunk, str(out), seed, *unit) for unit in work]):
            before, done = done, done + future.result()
            counted(done, total)
            if done * 4 // total > before * 4 // total:
                progress(f"sample suite: {done:,} of {total:,} files below {out}")


def _write_chunk(out: str, seed: int, name: str, split: str, start: int, stop: int) -> int:
    for index in range(start, stop):
        write_file(Path(out) / name, TASKS[name], seed, split, index)
    return stop - start


def _write_manifest(path: Path, task: SampleTask, seed: int) -> None:
    rows = []
    for split, size in task.split_sizes().items():
        for index in range(size):
            label = label_of(task, generator(seed, task.name, split, index), index)
            rows.append((path_of(task, split, index, label), label, split))
    paths, labels, splits = zip(*rows, strict=True)
    if task.labels is None:
        column = {"label": pa.array(labels, pa.int32())}
    else:
        column = {"labels": pa.array(labels, pa.list_(pa.int32()))}
    table = pa.table({"path": paths, **column, "split": splits})
    manifest.write(path, task=task.name, modality=task.modality, classes=task.classes, table=table)


def _read_stamp(out: Path) -> dict | None:
    try:
        return json.loads((out / STAMP).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def _write_stamp(out: Path, stamp: dict) -> None:
    temporary = out / f".{STAMP}.tmp"
    temporary.write_text(json.dumps(stamp) + "\n")
    os.replace(temporary, out / STAMP)
