"""A run whose folder lies in a store: no disk is shared, so what others are to see is brought there.

Each process works in a folder of its own on its machine, which goes when the process ends. The small JSON files are
objects of the store; checkpoints go there whole (`training.run_checkpoints`), the record through `tracking.Handover`,
and with it whatever else a process leaves in its folder.
"""

from __future__ import annotations

import contextlib
import functools
import json
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from polytrain.claim import FOLDER, Claim
from polytrain.data import storage
from polytrain.data.node_folder import NodeFolder
from polytrain.data.storage import StorageError
from polytrain.handover import Handover
from polytrain.run_folder import RunFolder

LOOK_S = 2.0
"""Between two looks at the store, and between two tellings of how far the run is."""


class StoredRun(RunFolder):
    """The files of one run, in a store."""

    remote = True
    look_s = LOOK_S

    def __init__(self, place: str) -> None:
        self.place = place
        self._ended = threading.Event()
        self._watcher: threading.Thread | None = None
        self._untold: dict[str, Any] | None = None
        self._stop = False
        self._beside = ThreadPoolExecutor(1, "to-store")
        self._work: deque[Future] = deque()

    @functools.cached_property
    def path(self) -> Path:
        """This process's own folder, made when it is first asked for."""
        self._scratch = NodeFolder(f"run-{uuid.uuid4().hex}")
        return self._scratch.path

    @functools.cached_property
    def handover(self) -> Handover:
        return Handover(self.path, self.place)

    def at(self, name: str) -> str:
        return storage.join(self.place, *name.split("/"))

    # --- progress and end ---

    def write_progress(self, values: dict[str, Any]) -> None:
        """In the background: a step need not wait for a store."""
        self._untold = values | {"written": time.time()}
        self._watch()

    def write_result(self, values: dict[str, Any]) -> None:
        self._ended.set()
        super().write_result(values)

    def request_stop(self) -> None:
        storage.write_bytes(self.at("stop"), b"")

    def stop_requested(self) -> bool:
        """As it was at the last look."""
        self._watch()
        return self._stop

    def _watch(self) -> None:
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._exchange, name="run-watcher", daemon=True)
            self._watcher.start()

    def _exchange(self) -> None:
        while not self._ended.is_set():
            # A store that is away now is asked again; checkpoints are what must arrive.
            with contextlib.suppress(StorageError):
                if self._untold is not None:
                    values, self._untold = self._untold, None
                    self._write("progress.json", values)
                self._stop = storage.kind(self.at("stop")) is pa.fs.FileType.File
            self._ended.wait(LOOK_S)

    def clear_for_start(self) -> None:
        for name in ("stop", "progress.json", "result.json", "start.json"):
            storage.remove_file(self.at(name))

    def news(self) -> tuple[dict[str, Any], dict[str, Any]]:
        with contextlib.suppress(StorageError):
            return super().news()
        return {}, {}

    def forget(self) -> None:
        for entry in storage.entries(self.place):
            if entry.type is pa.fs.FileType.File:
                storage.remove_file(self.at(entry.base_name))
            elif entry.base_name != FOLDER:
                storage.remove_folder(self.at(entry.base_name))

    def checkpoint_states(self) -> list[dict[str, Any]]:
        names = [entry.base_name for entry in storage.entries(self.at("checkpoints"))]
        states = (self._read(f"checkpoints/{name}/state.json") for name in names[::-1] if name.startswith("step_"))
        return [state for state in states if state]

    # --- one driver at a time ---

    def lock(self) -> int:
        raise NotImplementedError("a store has no locks; `held` takes a claim")

    @contextlib.contextmanager
    def held(self, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
        claim = Claim(self.place)
        claim.take(say)
        try:
            yield claim.check
        finally:
            claim.give_up()

    # --- what takes a store's time ---

    def beside(self, work: Callable[[], None]) -> None:
        self.settle(but=1)  # what comes faster than a store takes it must wait
        self._work.append(self._beside.submit(work))

    def settle(self, but: int = 0) -> None:
        while len(self._work) > but:
            self._work.popleft().result()

    def close(self) -> None:
        self._ended.set()
        self._beside.shutdown()
        if "path" in self.__dict__:
            self._scratch.close()

    # --- files ---

    def _write(self, name: str, values: dict[str, Any]) -> None:
        storage.write_bytes(self.at(name), json.dumps(values).encode())

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return json.loads(storage.fetch(self.at(name)))
        except (FileNotFoundError, ValueError):
            return {}
