"""Folders on this machine that its processes share: there while one of them lives, swept away afterwards.

A process that uses a folder holds a shared lock on the file `in-use` in it. The kernel drops the lock when the process
ends, however it ends; whoever opens a folder next removes those that nobody holds. So nothing is left behind for
longer than until the next run, not even by processes that were killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

IN_USE = "in-use"
BEING_MADE_S = 60.0
"""A folder without a lock file is just being made, unless it is older than this."""

LOCKS = 64
"""Lock files of a folder. Names share them, so that a million names leave sixty-four files."""


class NodeFolder:
    """A folder of that name, made where it is not. `path` is valid until `close`, or the end of the process."""

    def __init__(self, name: str, base: str | os.PathLike | None = None) -> None:
        top = Path(base or tempfile.gettempdir()) / f"polytrain-{os.getuid()}"
        top.mkdir(mode=0o700, parents=True, exist_ok=True)
        if top.stat().st_uid != os.getuid():
            raise PermissionError(f"{top} belongs to another user; TMPDIR names another place for temporary files")
        _sweep(top)
        self.path = top / name
        self._lock = _held(self.path)
        self._end = weakref.finalize(self, _release, self.path, self._lock, os.getpid())

    @contextlib.contextmanager
    def locked(self, name: int, *, wait: bool = True) -> Iterator[bool]:
        """Hold a lock against all threads and processes; False at once if it is held already and not to `wait` for."""
        handle = os.open(self.path / f"lock-{name % LOCKS}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            yield False
            return
        try:
            yield True
        finally:
            os.close(handle)

    def close(self) -> None:
        """Let go of the folder; it is removed if nobody else holds it."""
        self._end()


def _held(path: Path) -> int:
    """A shared lock on a folder, made where it is not."""
    while True:
        path.mkdir(mode=0o700, exist_ok=True)
        try:
            lock = os.open(path / IN_USE, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:  # swept away in between
            continue
        fcntl.flock(lock, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path / IN_USE).st_ino == os.fstat(lock).st_ino:
                return lock
        os.close(lock)


def _release(path: Path, lock: int, owner: int) -> None:
    if os.getpid() == owner:  # a forked child has inherited lock and finaliser, but the folder is its parent's
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


def _sweep(top: Path) -> None:
    """Remove the folders that no process holds."""
    for path in top.iterdir():
        try:
            lock = os.open(path / IN_USE, os.O_RDWR)
        except FileNotFoundError:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > BEING_MADE_S:
                    shutil.rmtree(path, ignore_errors=True)
            continue
        except NotADirectoryError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)
