"""An append-only file of everything a run logged, and how much of it has reached MLflow.

Three files in the run's folder: `journal.jsonl` (one JSON object a line), `journal.cursor` (bytes delivered) and
`journal.lock`. Several processes may append to one journal (a driver and its training worker); each line is one
write in append mode. A process killed in mid-write leaves a torn line, which readers pass over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 18
"""Read at a time: about 2,500 metrics."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, between processes and between threads.

    A file system that knows no locks goes unlocked: what is delivered twice is recorded once, see `store`.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that a reader finds the old file or the new one, never a part of it."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    with draft.open("w") as file:
        file.write(json.dumps(content, indent=1))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


class Journal:
    """The journal of the run in `folder`, open for appending."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal.jsonl"
        self.lock_path = folder / "journal.lock"
        self.cursor_path = folder / "journal.cursor"
        self._unwritten = bytearray()
        self._mutex = threading.Lock()
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            self._unwritten += b"\n"  # ends the torn line of a killed process, so that ours stands on its own

    def append(self, entry: dict[str, Any]) -> None:
        """Add one entry; once this returns it survives the death of the process. What a full disk refuses is kept in
        memory and tried again with the next entry."""
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        with self._mutex:
            self._unwritten += line
            self._write()

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while self._unwritten:
                del self._unwritten[: os.write(self._descriptor, self._unwritten)]

    def sync(self) -> None:
        """Put all of it on the disk: it then survives a power cut, too."""
        with self._mutex:
            self._write()
        with contextlib.suppress(OSError):
            os.fsync(self._descriptor)

    @property
    def complete(self) -> bool:
        """Whether everything appended here stands in the file."""
        return not self._unwritten

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int, limit: int = CHUNK_BYTES) -> list[tuple[int, dict[str, Any] | None]]:
        """Entries that begin at byte `offset`, about `limit` bytes of them, each with the offset at which it ends.

        A line that is no JSON gives None; a last line that has no end yet is left for later.
        """
        data = os.pread(self._descriptor, limit, offset)
        if len(data) == limit and b"\n" not in data:
            return self.read(offset, limit * 4)  # one long entry, such as all parameters of a large recipe
        entries = []
        for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            offset += len(line)
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            entries.append((offset, entry if isinstance(entry, dict) else None))
        return entries

    def __iter__(self) -> Iterator[dict[str, Any]]:
        offset = 0
        while entries := self.read(offset):
            offset = entries[-1][0]
            yield from (entry for _, entry in entries if entry is not None)

    @property
    def cursor(self) -> dict[str, int]:
        """Bytes delivered by MLflow run id: the run's own and, where there is one, its copy's."""
        try:
            return json.loads(self.cursor_path.read_text())
        except (FileNotFoundError, ValueError):
            return {}

    def advance(self, run_id: str, offset: int) -> None:
        """Remember that everything before byte `offset` has reached the run. Call it under the lock."""
        write_whole(self.cursor_path, {**self.cursor, run_id: offset})

    def close(self) -> None:
        self.sync()
        os.close(self._descriptor)
