"""A run's folder: what lies where, and the small JSON files through which driver, workers and watchers talk.

checkpoints/step_*   the newest checkpoints           run.json, journal*   the run's record (tracking)
best/, final/        models                            recipe.yaml          the resolved recipe
start.json           the step this attempt starts at   progress.json        how far it is
result.json          how it ended                      stop                 asks the loop to stop

Where `output` is a URI, the folder lies in a store: `stored_run`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytrain.secrecy import without_secrets

if TYPE_CHECKING:
    from polytrain.handover import Handover


class BusyError(RuntimeError):
    """Another driver works in this folder."""


def open_run(place: str | Path) -> RunFolder:
    """The run at a path, or at a URI of a store."""
    from polytrain.data import storage

    local = storage.local_path(str(place))
    if local is not None:
        return RunFolder(local)
    from polytrain.stored_run import StoredRun

    return StoredRun(str(place))


class RunFolder:
    """The files of one run, in a folder that driver and workers share."""

    remote = False
    """Whether `path` is this process's alone, and what others are to see must be brought to `place`."""

    look_s = 0.2
    """Between two looks of a driver at what its workers say."""

    handover: Handover | None = None
    """How the run's record goes from process to process, where they share no folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.place = str(path)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def at(self, name: str) -> str:
        """Where something of this run lies, for people."""
        return str(self.path / name)

    # --- start ---

    def write_start(self, step: int, checkpoint: str | None, faults: tuple[str, ...] = ()) -> None:
        """Say from which step and checkpoint this attempt goes on; streams are built from it."""
        attempt = (self.start() or {}).get("attempt", 0) + 1
        told = [without_secrets(fault) for fault in faults]
        values = {"attempt": attempt, "step": step, "checkpoint": checkpoint, "faults": told}
        self._write("start.json", values)

    def start(self) -> dict[str, Any]:
        return self._read("start.json")

    # --- progress and end ---

    def write_progress(self, values: dict[str, Any]) -> None:
        self._write("progress.json", values | {"written": time.time()})

    def progress(self) -> dict[str, Any]:
        return self._read("progress.json")

    def write_result(self, values: dict[str, Any]) -> None:
        """Say how the run ended; a `message` is printed and logged from here, and holds no secrets."""
        if "message" in values:
            values = values | {"message": without_secrets(values["message"])}
        self._write("result.json", values)

    def result(self) -> dict[str, Any]:
        return self._read("result.json")

    def request_stop(self) -> None:
        (self.path / "stop").touch()

    def stop_requested(self) -> bool:
        return (self.path / "stop").exists()

    def clear_for_start(self) -> None:
        """Forget how an earlier attempt ended."""
        for name in ("stop", "progress.json", "result.json", "start.json"):
            (self.path / name).unlink(missing_ok=True)

    def news(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What start.json and progress.json say, to whoever only watches."""
        return self.start(), self.progress()

    def forget(self) -> None:
        """Leave nothing of earlier attempts but the lock."""
        for entry in self.path.iterdir():
            if entry.name == "driver.lock":
                continue
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def record(self) -> dict[str, Any]:
        """Which MLflow run this is, and where."""
        return self._read("run.json")

    def checkpoint_states(self) -> list[dict[str, Any]]:
        """What the checkpoints say of themselves, newest first, as far as it can be read; nothing is verified."""
        paths = sorted(self.checkpoints.glob("step_*/state.json"), reverse=True)
        return [state for path in paths if (state := _read_json(path))]

    # --- one driver at a time ---

    def lock(self) -> int:
        """Hold the folder until this process ends. Raises BusyError."""
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / "driver.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise BusyError(f"another process is running this recipe in {self.path}") from None
        return descriptor

    @contextlib.contextmanager
    def held(self, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
        """Hold the folder within the block; what it yields raises BusyError if another driver took it over meanwhile.

        Raises BusyError. `say` hears of what must be waited for.
        """
        descriptor = self.lock()
        try:
            yield lambda: None
        finally:
            os.close(descriptor)

    # --- what takes a store's time ---

    def beside(self, work: Callable[[], None]) -> None:
        """Do it, here at once, in a store beside whatever comes next and in the order of asking.

        Raises what earlier work raised.
        """
        work()

    def settle(self) -> None:
        """Wait until all such work is done. Raises what it raised."""

    def close(self) -> None:
        """This process needs the folder no more."""

    # --- files ---

    def _write(self, name: str, values: dict[str, Any]) -> None:
        partial = self.path / f".{name}.{os.getpid()}"
        partial.write_text(json.dumps(values))
        partial.rename(self.path / name)

    def _read(self, name: str) -> dict[str, Any]:
        return _read_json(self.path / name)


def _read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file, {} where there is none or it is torn."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
