"""Row groups of a packed collection on this machine: fetched once by whichever process comes first, mapped by all.

The walk (plan.py, `WindowedPass`) needs some row groups for a while and then not again before the next pass. A group
is fetched under a lock, written as an Arrow file and mapped; the groups fetched first leave first, once there are more
than `limit`. A process that still maps one keeps it alive. TMPDIR says where (TMPDIR=/dev/shm: in memory).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from polytrain.data.node_folder import NodeFolder
from polytrain.data.packed import PackedSplit

FETCHERS = 4
"""Threads of each process that fetch ahead: a store answers many requests at once, one at a time is slow."""

FOOTERS = 4096
"""Shards whose footers stay on this machine, some 50 kB each. Of a larger collection they are fetched more often."""

FAULT_S = 30.0
"""How long a group that could not be fetched counts as lost, before it is asked for again."""


class GroupCache:
    """The row groups of one split. `limit` groups stay on this machine's disk, for all its processes together."""

    def __init__(self, split: PackedSplit, name: str, limit: int) -> None:
        self._split, self._limit = split, limit
        self._folder = NodeFolder(f"{name}-{split.split}")
        self._open: OrderedDict[int, pa.Array] = OrderedDict()
        self._faults: dict[int, tuple[float, str]] = {}
        self._wanted: set[int] = set()
        self._guard = threading.Lock()
        self._fetchers = ThreadPoolExecutor(FETCHERS, thread_name_prefix="fetch")
        self.fetched = 0

    def content(self, example: int) -> bytes:
        """The media file of an example. Raises OSError where its row group can't be had."""
        group, row = self._split.find(example)
        value = self._group(group)[row].as_py()
        if value is None:
            raise OSError("was not packed")
        return value

    def fetch_ahead(self, groups: Iterable[int]) -> None:
        """Begin to fetch groups that are not here, in the background; what another process fetches is left to it."""
        wanted = []
        with self._guard:
            for group in groups:
                if group not in self._wanted and group not in self._open:
                    self._wanted.add(group)
                    wanted.append(group)
        # Every process of the machine is told to fetch the same groups: each begins elsewhere.
        turn = os.getpid() % max(1, len(wanted))
        for group in wanted[turn:] + wanted[:turn]:
            self._fetchers.submit(self._ahead, group)

    def _ahead(self, group: int) -> None:
        try:
            if not self._path(group).exists():
                # A fault is told by whoever needs the group, not here.
                with contextlib.suppress(OSError), self._folder.locked(group, wait=False) as mine:
                    if mine and not self._path(group).exists():
                        self._fetch(group)
        finally:
            with self._guard:
                self._wanted.discard(group)

    def _path(self, group: int) -> Path:
        return self._folder.path / f"group-{group}"

    def _group(self, group: int) -> pa.Array:
        array = self._open.pop(group, None)
        while array is None:
            array = self._mapped(group)
            if array is None:
                self._demand(group)
        self._open[group] = array
        while len(self._open) > self._limit:
            self._open.popitem(last=False)
        return array

    def _mapped(self, group: int) -> pa.Array | None:
        try:
            source = pa.memory_map(str(self._path(group)))
        except FileNotFoundError:
            return None
        return pa.ipc.open_file(source).get_batch(0).column(0)

    def _demand(self, group: int) -> None:
        since, fault = self._faults.get(group, (0.0, ""))
        if fault and time.monotonic() - since < FAULT_S:
            raise OSError(fault)
        with self._folder.locked(group):
            if not self._path(group).exists():
                try:
                    self._fetch(group)
                except OSError as error:
                    self._faults[group] = time.monotonic(), str(error)
                    raise

    def _fetch(self, group: int) -> None:
        """From the store into the folder. The caller holds the group's lock."""
        kept = self._folder.path / f"footer-{self._split.shard(group)[0]}"
        known = None
        with contextlib.suppress(FileNotFoundError):
            known = pq.read_metadata(kept)
        array, footer = self._split.read_group(group, known)
        self._write(group, array)
        if known is None:
            beside = kept.with_name(f"new-{kept.name}-{os.getpid()}-{threading.get_ident()}")
            footer.write_metadata_file(str(beside))
            beside.replace(kept)
            self._leave("footer-", FOOTERS)

    def _write(self, group: int, array: pa.Array) -> None:
        path = self._path(group)
        beside = path.with_name(f"new-{path.name}")
        batch = pa.record_batch([array], ["data"])
        with pa.OSFile(str(beside), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        beside.replace(path)
        self.fetched += 1
        self._leave("group-", self._limit)

    def _leave(self, kind: str, limit: int) -> None:
        """Remove the oldest files of a kind beyond a limit."""
        found = []
        for entry in os.scandir(self._folder.path):
            if entry.name.startswith(kind):
                with contextlib.suppress(FileNotFoundError):
                    found.append((entry.stat().st_mtime_ns, entry.path))
        for _, path in sorted(found)[: max(0, len(found) - limit)]:
            Path(path).unlink(missing_ok=True)

    def close(self) -> None:
        self._fetchers.shutdown(wait=True, cancel_futures=True)
        self._open.clear()
        self._folder.close()
