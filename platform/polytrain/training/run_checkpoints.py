"""A run's checkpoints where its output lies: in its folder, or in a store, written here and read from copies here.

In a store a checkpoint is whole or does not count, as on a disk: `state.json`, which vouches for the rest, goes last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from polytrain.data import storage
from polytrain.data.node_folder import NodeFolder
from polytrain.run_folder import RunFolder
from polytrain.training import checkpoint
from polytrain.training.checkpoint import CheckpointError

STATE = "state.json"

_copies: dict[Path, NodeFolder] = {}
"""Fetched checkpoints that this process holds; it shares them with others of its machine."""


def newest(run: RunFolder) -> tuple[str | None, dict[str, Any], tuple[str, ...]]:
    """The newest checkpoint that verifies, its state, and the faults of newer ones. Raises StorageError."""
    if not run.remote:
        found = checkpoint.newest_whole(run.checkpoints)
        return (str(found.path) if found.path else None), found.state, found.faults
    faults = []
    for name in _steps(run)[::-1]:
        place = run.at(f"checkpoints/{name}")
        try:
            state = json.loads((copy(place) / STATE).read_text())
        except CheckpointError as fault:
            faults.append(str(fault))
            continue
        return place, state, tuple(faults)
    return None, {}, tuple(faults)


def copy(place: str) -> Path:
    """A checkpoint on this machine, fetched once for all its processes and verified; one in a folder is where it is.

    Raises CheckpointError, StorageError.
    """
    local = storage.local_path(place)
    if local is not None:
        return Path(local)
    try:
        state = storage.fetch(storage.join(place, STATE))
    except FileNotFoundError:
        raise CheckpointError(f"{place} has no {STATE}: it is no checkpoint, or was not written to the end") from None
    folder = NodeFolder(f"checkpoint-{hashlib.sha256(place.encode() + state).hexdigest()[:32]}")
    whole = folder.path / "whole"
    with folder.locked(0):
        if not whole.exists():
            partial = folder.path / "partial"
            shutil.rmtree(partial, ignore_errors=True)
            _fetch(place, state, partial)
            partial.rename(whole)
    _copies[whole] = folder
    return whole


def release(path: Path) -> None:
    """A copy is no longer needed by this process."""
    if path in _copies:
        _copies.pop(path).close()


def written(run: RunFolder, folder: Path) -> None:
    """A checkpoint was written to `folder`, below the run's: where others look for it elsewhere, it is brought there
    beside the training that goes on. Raises StorageError where an earlier one could not be."""
    if run.remote:
        run.beside(lambda: _send(folder, run.at(folder.relative_to(run.path).as_posix())))


def keep_newest(run: RunFolder, count: int) -> None:
    """Remove all but the newest checkpoints, behind those that are on their way. Raises as `written` does."""
    if not run.remote:
        checkpoint.keep_newest(run.checkpoints, count)
        return

    def remove() -> None:
        for name in _steps(run)[:-count]:
            storage.remove_folder(run.at(f"checkpoints/{name}"))

    run.beside(remove)


def _send(folder: Path, place: str) -> None:
    state = storage.join(place, STATE)
    storage.remove_file(state)  # one that stands there already must not vouch for these files
    for file in sorted(folder.iterdir()):
        if file.name != STATE:
            storage.upload(storage.join(place, file.name), file)
    storage.upload(state, folder / STATE)
    if folder.name != "final":  # which goes to MLflow from here
        shutil.rmtree(folder)


def _steps(run: RunFolder) -> list[str]:
    """Checkpoints of a store, whole or not, oldest first."""
    names = [entry.base_name for entry in storage.entries(run.at("checkpoints"))]
    return [name for name in names if name.startswith("step_")]


def _fetch(place: str, state: bytes, into: Path) -> None:
    """Raises CheckpointError, naming what lies in the store."""
    into.mkdir()
    (into / STATE).write_bytes(state)
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # `verify` says what is wrong
        for name in json.loads(state)["sha256"]:
            if name in checkpoint.FILES:
                with contextlib.suppress(FileNotFoundError):
                    storage.download(storage.join(place, name), into / name)
    try:
        checkpoint.verify(into)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(f"{into}/", f"{place}/").replace(str(into), place)) from None
