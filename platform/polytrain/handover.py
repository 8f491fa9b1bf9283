"""A run's record in a store, where driver and workers share no folder: fetched by the next of them, published by each.

Only one of them records at a time: the driver until training starts, then rank 0, then the driver again. What MLflow is
told has been published before, so that whoever goes on, on whichever machine, knows what MLflow has; a journal that
grows is sent in parts of a mebibyte, of which only the last one is ever sent again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from polytrain.data import storage
from polytrain.data.node_folder import IN_USE

PART_BYTES = 1 << 20
JOURNAL, CURSOR = "journal.jsonl", "journal.cursor"
APART = ("checkpoints", "best", "final", "ray_train")
"""Folders that whoever writes them brings to the store himself, or nobody."""


class Handover:
    """The record in `folder`, this process's own, and at `place`, everybody's."""

    def __init__(self, folder: Path, place: str) -> None:
        self.folder, self.place = folder, place
        self._published = 0  # bytes of the journal
        self._known: dict[str, tuple[int, int]] = {}  # modification time and size of files as they are in the store
        self._mutex = threading.Lock()

    def fetch(self) -> None:
        """Bring the record here as it was published last. Raises StorageError."""
        with self._mutex:
            journal = self.folder / JOURNAL
            with journal.open("wb") as file:
                for entry in storage.entries(storage.join(self.place, "journal")):
                    if entry.type is pa.fs.FileType.File:
                        file.write(storage.fetch(storage.join(self.place, "journal", entry.base_name)))
            self._published = journal.stat().st_size
            for name in ("run.json", CURSOR):
                self._fetch(name)

    def bring(self, name: str) -> Path:
        """A file or folder of the run, fetched where another process left it; there may be none."""
        here = self.folder / name
        with self._mutex:
            if not here.exists():
                self._fetch(name)
        return here

    def publish(self) -> None:
        """Bring to the store what is new here, the journal last: what it names is there. Raises StorageError."""
        with self._mutex:
            journal = self.folder / JOURNAL
            size = journal.stat().st_size if journal.exists() else 0
            for name, file, changed in self._changed():
                storage.upload(self._at(name), file)
                self._known[name] = changed
            if size > self._published:
                self._publish_journal(journal, size)

    def _publish_journal(self, journal: Path, size: int) -> None:
        first = self._published // PART_BYTES
        with journal.open("rb") as file:
            file.seek(first * PART_BYTES)
            for part in range(first, -(-size // PART_BYTES)):
                content = file.read(min(PART_BYTES, size - part * PART_BYTES))
                storage.write_bytes(storage.join(self.place, "journal", f"{part:06d}"), content)
        self._published = size

    def _changed(self) -> Iterator[tuple[str, Path, tuple[int, int]]]:
        """Files that are not in the store as they are here."""
        for file in sorted(self.folder.rglob("*")):
            name = file.relative_to(self.folder).as_posix()
            first, *_, last = name.split("/") * 2
            if first in APART or last.startswith(".") or last.endswith((".lock", ".tmp")) or name in (JOURNAL, IN_USE):
                continue
            if file.is_file():
                stat = file.stat()
                changed = stat.st_mtime_ns, stat.st_size
                if self._known.get(name) != changed:
                    yield name, file, changed

    def _fetch(self, name: str) -> None:
        place = self._at(name)
        kind = storage.kind(place)
        if kind is pa.fs.FileType.Directory:
            for below, _ in storage.files(place):
                self._fetch(f"{name}/{below}")
        elif kind is pa.fs.FileType.File:
            file = self.folder / name
            storage.download(place, file)
            self._known[name] = file.stat().st_mtime_ns, file.stat().st_size

    def _at(self, name: str) -> str:
        return storage.join(self.place, *name.split("/"))
