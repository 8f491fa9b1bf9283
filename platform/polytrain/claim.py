"""One driver at a time in a store, which knows no locks: claims that their drivers renew while they live.

A driver writes an object `drivers/ID.json`, then looks for others'. One that is renewed belongs to a living driver: the
newcomer gives way. One that is not, or whose process is gone from this machine, is removed. Stores list what was
written before (S3, Google's and Azure's do), so of two drivers that start at once at least one sees the other.
Ages are told by the store's clock alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polytrain.data import storage
from polytrain.data.storage import StorageError
from polytrain.run_folder import BusyError

FOLDER = "drivers"
RENEWED_S = 10.0
STALE_S = 40.0
"""A claim that was not renewed for so long is that of a driver which is gone, or cut off from the store."""

LOOK_S = 2.0


class Claim:
    """A driver's claim to the run at `place`."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.folder = storage.join(place, FOLDER)
        self.name = f"{uuid.uuid4().hex}.json"
        self._end = threading.Event()
        self._lost = False
        self._keeper = threading.Thread(target=self._keep, name="claim", daemon=True)

    def take(self, say: Callable[[str], None]) -> None:
        """Claim the run, once every other claim has proved dead. Raises BusyError where one proves alive."""
        self._write()
        try:
            self._outlive(say)
        except BaseException:
            self._remove(self.name)
            raise
        self._keeper.start()

    def check(self) -> None:
        """Raises BusyError where another driver has taken over, this one being cut off from the store for too long."""
        if self._lost:
            raise BusyError(
                f"this driver could not reach {self.place} for {STALE_S:.0f} s, and another took the run over"
            )

    def give_up(self) -> None:
        """Let others in at once."""
        self._end.set()
        self._keeper.join()
        with contextlib.suppress(StorageError):
            self._remove(self.name)

    def _outlive(self, say: Callable[[str], None]) -> None:
        """Wait until no other claim is there. Raises BusyError."""
        first: dict[str, float] = {}
        while others := self._others():
            for name, (renewed, age) in others.items():
                driver = self._read(name)
                if driver is None:
                    continue  # given up in between
                who = f"process {driver['pid']} on {driver['host']}"
                here = driver["machine"] is not None and driver["machine"] == _machine()
                alive = _lives(driver["pid"]) if here else None
                if alive or renewed != first.get(name, renewed):
                    raise BusyError(f"another process is running this recipe in {self.place}: {who}")
                if alive is False or age > STALE_S:
                    self._remove(name)
                elif name not in first:
                    say(f"{who} was at this run {age:.0f} s ago: waiting up to {STALE_S:.0f} s to see whether it lives")
                first[name] = renewed
            time.sleep(LOOK_S)
            self._write()

    def _others(self) -> dict[str, tuple[float, float]]:
        """When each other claim was renewed, and how long before this one that was, in seconds."""
        found = {info.base_name: info.mtime_ns / 1e9 for info in storage.entries(self.folder)}
        if self.name not in found:
            raise BusyError(f"another process has just begun to run this recipe in {self.place}")
        mine = found.pop(self.name)
        return {name: (when, mine - when) for name, when in found.items() if name.endswith(".json")}

    def _keep(self) -> None:
        while not self._end.wait(RENEWED_S):
            with contextlib.suppress(StorageError):
                if self._read(self.name) is None:
                    self._lost = True
                    return
                self._write()

    def _write(self) -> None:
        driver = {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine()}
        storage.write_bytes(storage.join(self.folder, self.name), json.dumps(driver).encode())

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return json.loads(storage.fetch(storage.join(self.folder, name)))
        except FileNotFoundError:
            return None

    def _remove(self, name: str) -> None:
        storage.remove_file(storage.join(self.folder, name))


def _machine() -> str | None:
    """Where a process id means what it means here: this boot of this kernel, this container. None if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
