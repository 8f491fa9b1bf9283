"""Media stored with their manifest: made smaller under OUT/media, or inline in the Parquet file; in parallel on Ray.

The collection is cut into batches. A worker stores the media of one, each file whole or not at all, and last of all
writes the batch's part: a small Parquet file in OUT/.parts that says of every file where it went, or why it could not
be read, and holds what goes inline. A command that is killed and started again finds the parts and the files that are
finished and does neither again. The manifest is put together from the parts when all are there; then they are removed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

from polytrain.data import storage
from polytrain.data.decode import FILE_ERRORS, DecodeError, failure_reason
from polytrain.data.importers.collection import Example, IngestError
from polytrain.data.recoding import Recoding
from polytrain.progress import Progress, ticking
from polytrain.secrecy import faults_without_secrets

PARTS = ".parts"
MEDIA = "media"
HERE = 256
"""So few images or sounds are stored in this process: starting Ray takes three seconds."""

BATCHES = 2000
SMALLEST_BATCH = {"image": 16, "audio": 16, "video": 2}
LARGEST_BATCH = 256
"""Files: a killed command repeats at most the inline files of one batch a core, and a part stays a few megabytes."""

PART = pa.schema(
    {"place": pa.string(), "data": pa.binary(), "reason": pa.string(), "before": pa.int64(), "after": pa.int64()}
)
"""One row a file: where it lies below OUT (null: where it was), its bytes where inline, why it could not be stored."""


@dataclass(frozen=True)
class Storing:
    """What is stored: `recoding` says in which form, files of up to `inline_bytes` go into the manifest."""

    recoding: Recoding = field(default_factory=Recoding)
    inline_bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.recoding or self.inline_bytes)


@dataclass(frozen=True)
class Job:
    """What a worker needs to know besides the files."""

    modality: str
    storing: Storing
    out: str


@dataclass
class Batch:
    """Files that are stored in one go; `parts` are the names of their parts in order, once they are there."""

    files: Sequence[Example]
    key: str
    parts: list[str] = field(default_factory=list)
    earlier: bool = False
    """An earlier attempt finished it."""


class Stored:
    """What became of every file, in the order in which they were given."""

    def __init__(self, out: str, batches: Sequence[Batch]) -> None:
        self.out = out
        self.places: list[str | None] = []
        self.reasons: list[str | None] = []
        self.inline: list[bool] = []
        self.before = self.after = 0
        self.earlier = 0
        """Files that an earlier attempt finished."""
        self._where: list[tuple[str, int]] = []
        parts = [(name, batch.earlier) for batch in batches for name in batch.parts]
        with Progress("reading what was stored", len(parts), "parts") as progress, ticking(progress):
            self._add(parts, progress)
        self._part = functools.lru_cache(maxsize=4)(self._read_data)

    def _add(self, parts: Sequence[tuple[str, bool]], progress: Progress) -> None:
        for (name, earlier), table in zip(parts, _read_parts(self.out, [name for name, _ in parts]), strict=True):
            self.places += table["place"].to_pylist()
            self.reasons += table["reason"].to_pylist()
            self.inline += table["inline"].to_pylist()
            self.before += sum(filter(None, table["before"].to_pylist()))
            self.after += sum(filter(None, table["after"].to_pylist()))
            found = pc.and_(table["place"].is_valid(), table["before"].is_null())
            self.earlier += len(table) if earlier else pc.sum(found).as_py() or 0
            self._where += [(name, row) for row in range(len(table))]
            progress.done += 1

    def data(self, file: int) -> pa.Scalar:
        """The bytes of a file that goes inline, null of another."""
        name, row = self._where[file]
        return self._part(name)[row]

    def _read_data(self, name: str) -> pa.Array:
        with storage.open_file(storage.join(self.out, PARTS, name)) as file:
            return pq.read_table(file, columns=["data"])["data"].combine_chunks()

    def done(self) -> None:
        """The manifest is written: the parts go."""
        storage.remove_folder(storage.join(self.out, PARTS))


def _read_parts(out: str, names: Sequence[str]) -> Iterator[pa.Table]:
    from concurrent.futures import ThreadPoolExecutor

    def read(name: str) -> pa.Table:
        with storage.open_file(storage.join(out, PARTS, name)) as file:
            table = pq.read_table(file)
        return table.append_column("inline", table["data"].is_valid()).drop_columns(["data"])

    with ThreadPoolExecutor(8) as pool:
        yield from pool.map(read, names)


# ---------------------------------------------------------------------------------------------------- in workers


@faults_without_secrets()
def store_batch(job: Job, files: Sequence[Example], key: str) -> str:
    """Stores some files and writes their part; returns its name, which tells whether all were well."""
    kept = _kept(job, files)
    rows = [_store(job, example, place) for example, place in zip(files, kept, strict=True)]
    name = f"{key}.parquet" if all(row["reason"] is None for row in rows) else f"{key}.retry.parquet"
    with storage.write_whole(storage.join(job.out, PARTS, name)) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, PART), temporary, compression="none")
    return name


def _kept(job: Job, files: Sequence[Example]) -> list[str | None]:
    """Of every file the place where an earlier attempt has stored it already."""
    places = [None if example.data is not None else _place(job, example, example.path) for example in files]
    asked = [place for place in places if place] if job.storing.recoding else []
    infos = storage.kinds([storage.join(job.out, *place.split("/")) for place in asked]) if asked else []
    there = {place for place, info in zip(asked, infos, strict=True) if info.type is pa.fs.FileType.File}
    return [place if place in there else None for place in places]


def _place(job: Job, example: Example, source: str | bytes) -> str:
    """Where a file is stored below OUT: a name for people, and a digest that changes with source and options."""
    identity = [example.path, example.start_s, example.end_s, job.storing.recoding]
    local = storage.local_path(example.path)
    if local is not None and example.data is None:
        with contextlib.suppress(OSError):
            status = os.stat(local)
            identity += [status.st_size, status.st_mtime_ns]
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()
    stem, suffix = os.path.splitext(os.path.basename(example.path.partition("?")[0]))
    if job.storing.recoding:
        suffix = job.storing.recoding.suffix(job.modality, example.path, source)
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[:60]
    return f"{MEDIA}/{digest[:2]}/{stem}-{digest[2:12]}{suffix}"


def _store(job: Job, example: Example, kept: str | None) -> dict:
    row = dict.fromkeys(PART.names)
    if kept is not None:
        return row | {"place": kept}
    recoding, limit = job.storing.recoding, job.storing.inline_bytes
    try:
        if not recoding and example.data is None and (size := _local_size(example.path)) and size > limit:
            return row | {"before": size, "after": size}  # stays where it is
        source = _source(example, recoding)
        row["before"] = len(source) if isinstance(source, bytes) else _local_size(source)
        data = source
        if recoding:
            data = recoding.recoded(job.modality, example.path, source, example.start_s, example.end_s)
        row["after"] = len(data)
    except (DecodeError, storage.StorageError) as error:
        return row | {"reason": str(error)}
    if len(data) <= limit or (example.data is not None and not recoding):
        return row | {"data": data}
    if not recoding:
        return row
    place = _place(job, example, source)
    # That nothing can be written is no fault of this file: it ends the command.
    storage.write_bytes(storage.join(job.out, *place.split("/")), data)
    return row | {"place": place}


def _source(example: Example, recoding: Recoding) -> str | bytes:
    """The file's bytes, or its local path where it is read by its decoder."""
    local = storage.local_path(example.path)
    try:
        if example.data is not None:
            return example.inline()
        return local if recoding and local is not None else storage.fetch(example.path)
    except storage.StorageError:
        raise
    except FILE_ERRORS as error:
        raise DecodeError(failure_reason(error)) from error


def _local_size(path: str) -> int | None:
    local = storage.local_path(path)
    try:
        return None if local is None else os.path.getsize(local)
    except OSError:
        return None  # told where it is read


# ---------------------------------------------------------------------------------------------------- the driver


def store(files: Sequence[Example], modality: str, storing: Storing, out: str) -> Stored:
    """Stores media below OUT; what an earlier attempt finished is not done again.

    Raises StorageError or OSError where OUT can't be written to, IngestError where another command is at it.
    """
    job = Job(modality, storing, out)
    size = min(max(len(files) // BATCHES, SMALLEST_BATCH[modality]), LARGEST_BATCH)
    batches = [
        Batch(files[start : start + size], _key(job, files[start : start + size]))
        for start in range(0, len(files), size)
    ]
    with storage.alone_in(out, IngestError(f"{out}: another command is preparing this folder now")):
        doing = "re-encoding" if storing.recoding else "reading"
        with Progress(doing, len(files), "files") as progress, ticking(progress):
            finished = _finished(out)
            unreadable = 0

            def done(batch: Batch, part: str, count: int, *, earlier: bool = False) -> None:
                nonlocal unreadable
                batch.parts.append(part)
                unreadable += part.endswith(".retry.parquet")
                progress.note = f", {unreadable} batches with unreadable files" if unreadable else ""
                progress.add(count, earlier=earlier)

            todo = []
            for batch in batches:
                name = f"{batch.key}.parquet"
                if name in finished:
                    batch.earlier = True
                    done(batch, name, len(batch.files), earlier=True)
                else:
                    todo.append(batch)
            left = sum(len(batch.files) for batch in todo)
            few = left <= HERE and modality != "video"
            (_store_here if few else _store_on_ray)(job, todo, done)
        return Stored(out, batches)


Done = Callable[[Batch, str, int], None]


def _key(job: Job, files: Sequence[Example]) -> str:
    """The same for the same files stored in the same way, whoever asks."""
    digest = hashlib.sha256(repr((job.modality, job.storing)).encode())
    for example in files:
        digest.update(repr((example.path, example.start_s, example.end_s)).encode())
    return digest.hexdigest()[:24]


def _finished(out: str) -> set[str]:
    try:
        return {name for name, _ in storage.files(storage.join(out, PARTS)) if not name.endswith(".retry.parquet")}
    except FileNotFoundError:
        return set()


def _store_here(job: Job, batches: Sequence[Batch], done: Done) -> None:
    for batch in batches:
        done(batch, store_batch(job, batch.files, batch.key), len(batch.files))


def _store_on_ray(job: Job, batches: Sequence[Batch], done: Done) -> None:
    from polytrain.cluster import joined

    if not batches:
        return
    with joined():
        import ray

        task = ray.remote(num_cpus=1, max_retries=1)(store_batch)
        about = ray.put(job)
        at_once = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
        waiting, running = iter(batches), {}
        while True:
            while len(running) < at_once and (batch := next(waiting, None)) is not None:
                running[task.remote(about, list(batch.files), batch.key)] = batch
            if not running:
                return
            ready, _ = ray.wait(list(running), timeout=0.5)
            for reference in ready:
                batch = running.pop(reference)
                try:
                    part = ray.get(reference)
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                    _store_one_by_one(job, task, batch, done)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause if isinstance(error.cause, (OSError, IngestError)) else error from None
                else:
                    done(batch, part, len(batch.files))


def _store_one_by_one(job: Job, task: object, batch: Batch, done: Done) -> None:
    """A file of the batch ends the process that decodes it: find out which."""
    import ray

    for example in batch.files:
        one = Batch([example], _key(job, [example]))
        try:
            part = ray.get(task.remote(job, one.files, one.key))
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
            part = f"{one.key}.retry.parquet"
            row = dict.fromkeys(PART.names) | {"reason": "reading it ends the process (a crash, or too little memory)"}
            with storage.write_whole(storage.join(job.out, PARTS, part)) as temporary:
                pq.write_table(pa.Table.from_pylist([row], PART), temporary)
        done(batch, part, 1)
