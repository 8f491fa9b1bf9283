"""From a collection as it was found to a manifest: split, checked, its media stored if asked for, written, told."""

from __future__ import annotations

import argparse
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from polytrain.data import manifest, storage
from polytrain.data.importers.collection import Collection, Example, IngestError
from polytrain.ingest.copies import without_overlap
from polytrain.ingest.options import storing_of
from polytrain.ingest.splitting import check_fractions, split_off
from polytrain.ingest.storing import Stored, Storing, store
from polytrain.progress import Progress, ticking

LEFT_OUT = "left_out.parquet"
SHOWN = 5
PIECE_BYTES = 4_000_000
PIECE_ROWS = 4096
"""A row group of a manifest with media inline ends at either."""


def prepare(collection: Collection, options: argparse.Namespace, named_after: str) -> str:
    """Writes OUT/manifest.parquet, prints what it holds, and returns its place."""
    out = options.out if storage.is_remote(options.out) else os.path.abspath(storage.local_path(options.out))
    task = options.name or _task_name(named_after)
    _check_request(task, out)
    storing = storing_of(options, collection.modality)
    if storing and out in (options.root, os.path.abspath(options.root)):
        raise IngestError(f"{out}: is --root as well; media/ would stand among its folders: give another --out")
    collection, examples = _split(collection, options)
    _classes(collection, examples)
    files, stored, of = _stored(examples, collection.modality, storing, out)
    left_out = [(path, "", "is not there") for path in collection.missing]
    if stored is not None:
        left_out += [
            (example.path, example.split, stored.reasons[number])
            for example, number in zip(examples, of, strict=True)
            if stored.reasons[number] is not None
        ]
        kept = [(e, number) for e, number in zip(examples, of, strict=True) if stored.reasons[number] is None]
        examples, of = [e for e, _ in kept], [number for _, number in kept]
    _judge_left_out(left_out, examples, options.missing)
    path = storage.join(out, "manifest.parquet")
    sizes, classes = _write(path, task, collection, examples, stored, of, storing)
    _write_left_out(out, left_out)
    if stored is not None:
        stored.done()
    for note in (*collection.notes, *_told(left_out, out, stored, len(files))):
        print(note)
    print(_summary(path, task, collection, sizes, classes))
    return path


# ----------------------------------------------------------------------------------------------- before anything


def _task_name(named_after: str) -> str:
    name = posixpath.basename(named_after.partition("?")[0].rstrip("/"))
    if not storage.is_remote(named_after):
        name = os.path.basename(os.path.abspath(named_after))
    return re.sub(r"[^A-Za-z0-9_-]+", "_", unquote(name)).strip("_")


def _check_request(task: str, out: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", task):
        raise IngestError(f"task name {task!r}: letters, digits, _ and - make one; --name sets it")
    if storage.kind(out) is pa.fs.FileType.File:
        raise IngestError(f"{out}: is a file; --out names the folder that manifest.parquet is written to")


def _split(collection: Collection, options: argparse.Namespace) -> tuple[Collection, list[Example]]:
    """The collection's examples in their splits; official datasets bring theirs and say which files are the same."""
    if "val_fraction" not in options:
        return collection, list(collection.examples)
    fractions = {"val": options.val_fraction, "test": options.test_fraction}
    check_fractions(fractions)
    collection, copies = without_overlap(collection, options.overlap)
    with Progress("splitting", None, "examples") as progress, ticking(progress):
        return collection, split_off(collection.examples, fractions, options.seed, copies)


def _classes(collection: Collection, examples: Sequence[Example]) -> list[str]:
    """Class names, index by index."""
    if collection.classes is not None:
        return list(collection.classes)
    trained = {name for example in examples if example.split == "train" for name in example.classes}
    for example in examples:
        for name in example.classes:
            if name not in trained:
                raise IngestError(
                    f"class {name!r} has no training example but stands in {example.split} ({example.path}); "
                    f"a model cannot learn it: add some, or take it out"
                )
    return sorted(trained)


# -------------------------------------------------------------------------------------------------------- media


def _stored(
    examples: Sequence[Example], modality: str, storing: Storing, out: str
) -> tuple[Sequence[Example], Stored | None, list[int]]:
    """The files of the examples, what became of them, and each example's file; a file may be in val and in test."""
    if not storing and all(example.data is None for example in examples):
        return examples, None, list(range(len(examples)))
    numbers: dict[tuple, int] = {}
    files: list[Example] = []
    of = []
    for example in examples:
        number = numbers.setdefault((example.path, example.start_s, example.end_s), len(files))
        if number == len(files):
            files.append(example)
        of.append(number)
    return files, store(files, modality, storing, out), of


def _judge_left_out(left_out: list[tuple], examples: Sequence[Example], missing: str | None) -> None:
    if not left_out or (missing != "fail" and any(example.split == "train" for example in examples)):
        return
    shown = "".join(f"\n  {path}: {reason}" for path, _, reason in left_out[:SHOWN])
    more = f"\n  and {len(left_out) - SHOWN} more" if len(left_out) > SHOWN else ""
    advice = "; --missing skip leaves them out" if missing == "fail" else ", and no training example is left"
    raise IngestError(f"{len(left_out)} files are not there or can't be read{advice}:{shown}{more}")


# ------------------------------------------------------------------------------------------------------ writing


def _write(
    path: str,
    task: str,
    collection: Collection,
    examples: Sequence[Example],
    stored: Stored | None,
    of: Sequence[int],
    storing: Storing,
) -> tuple[dict[str, int], list[str]]:
    """Writes the manifest; its sizes and classes."""
    classes = _classes(collection, examples)
    number = {name: index for index, name in enumerate(classes)}
    place_of = _Places(storage.parent(path))
    inline = stored is not None and any(stored.inline)
    paths, starts, ends = [], [], []
    with Progress("naming the media", len(examples), "examples") as progress:
        for example, file in zip(examples, of, strict=True):
            place = stored.places[file] if stored is not None else None
            paths.append(None if inline and stored.inline[file] else place or place_of(example.path))
            cut = storing.recoding and collection.modality != "image"  # the stored file is the clip
            starts.append(None if cut else example.start_s)
            ends.append(None if cut else example.end_s)
            progress.add()
    labels = [[number[name] for name in example.classes] for example in examples]
    columns = {"path": pa.array(paths, pa.string())}
    if collection.multi_label:
        columns["labels"] = pa.array(labels, pa.list_(pa.int32()))
    else:
        columns["label"] = pa.array([label for (label,) in labels], pa.int32())
    columns["split"] = pa.array([example.split for example in examples], pa.string())
    for name, times in (("start_s", starts), ("end_s", ends)):
        if any(time is not None for time in times):
            columns[name] = pa.array(times, pa.float64())
    with Progress("writing the manifest", len(examples) if inline else None, "examples") as progress, ticking(progress):
        data = _pieces(stored, of, progress) if inline else None
        about = {"task": task, "modality": collection.modality, "classes": classes}
        manifest.write(path, **about, table=pa.table(columns), data=data)
    sizes = {name: sum(example.split == name for example in examples) for name in manifest.SPLITS}
    return sizes, classes


def _pieces(stored: Stored, of: Sequence[int], progress: Progress) -> Iterator[pa.Array]:
    """The column `data`, a row group at a time."""
    piece, size = [], 0
    for file in of:
        data = stored.data(file).as_py()
        piece.append(data)
        size += len(data or b"")
        progress.done += 1
        if size >= PIECE_BYTES or len(piece) >= PIECE_ROWS:
            yield pa.array(piece, pa.binary())
            piece, size = [], 0
    if piece:
        yield pa.array(piece, pa.binary())


@dataclass(frozen=True)
class _Places:
    """How the manifest in `folder` names files: relative to itself where they are neighbours, else absolute."""

    folder: str

    def __call__(self, path: str) -> str:
        local = storage.local_path(path)
        if local is None:
            return self._below(path) or path
        if storage.is_remote(self.folder):
            raise IngestError(
                f"{path}: lies on this machine, the manifest would lie at {self.folder}, and be read elsewhere; "
                f"--short-side, --sample-rate or --inline store the media with it"
            )
        shared = os.path.commonpath([local, self.folder])
        return local if shared == os.path.sep else os.path.relpath(local, self.folder)

    def _below(self, uri: str) -> str | None:
        """The relative path of a file below the folder, in the same store."""
        if not storage.is_remote(self.folder):
            return None
        file, folder = urlsplit(uri, allow_fragments=False), urlsplit(self.folder, allow_fragments=False)
        base = unquote(folder.path).rstrip("/") + "/"
        if file[:2] != folder[:2] or file.query != folder.query or not unquote(file.path).startswith(base):
            return None
        return unquote(file.path)[len(base) :]


def _write_left_out(out: str, left_out: list[tuple[str, str, str]]) -> None:
    place = storage.join(out, LEFT_OUT)
    if not left_out:
        local = storage.local_path(place)
        if local is not None and os.path.exists(local):
            os.unlink(local)  # of an earlier attempt
        return
    columns = {name: pa.array(values, pa.string()) for name, values in zip(("path", "split", "reason"), zip(*left_out))}
    with storage.write_whole(place) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")


# ------------------------------------------------------------------------------------------------------ telling


def _told(left_out: list[tuple], out: str, stored: Stored | None, files: int) -> Iterator[str]:
    if left_out:
        yield f"left out {len(left_out):,} files, all listed in {_shown(storage.join(out, LEFT_OUT))}:"
        yield from (f"  {path}: {reason}" for path, _, reason in left_out[:SHOWN])
        if len(left_out) > SHOWN:
            yield f"  and {len(left_out) - SHOWN:,} more"
    if stored is not None and stored.earlier:
        yield f"{stored.earlier:,} of {files:,} files were finished by an earlier command"
    if stored is not None and stored.before:
        yield f"{files:,} files: {_size(stored.before)} became {_size(stored.after)}"


def _size(count: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def _shown(path: str) -> str:
    if storage.is_remote(path):
        return path
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _summary(path: str, task: str, collection: Collection, sizes: dict[str, int], classes: Sequence[str]) -> str:
    """What a manifest holds, where it lies, and the three lines of a recipe that use it."""
    multi_label, modality, shown = collection.multi_label, collection.modality, _shown(path)
    names = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
    batch = min(16, sizes["train"])
    steps = max(100, round(10 * sizes["train"] / batch))
    loss = "sigmoid" if multi_label else "softmax"
    return "\n".join(
        [
            f"{task}: {modality}, {len(classes)} classes{', multi-label' if multi_label else ''} ({names})",
            "  " + "  ".join(f"{name} {size}" for name, size in sizes.items()),
            f"  {shown}",
            "In a recipe (ten passes; the learning rate is a first guess):",
            "tasks:",
            f"  {task}: {{modality: {modality}, manifest: {shown}, steps: {steps},",
            f"    warmup_steps: {steps // 20}, lr: 0.001, batch_size: {batch}, loss: {loss}}}",
        ]
    )
