"""One run's record: every call goes to the journal at once, a background thread carries it to MLflow."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from polytrain.base_folder import base_folder
from polytrain.data import storage
from polytrain.data.storage import StorageError
from polytrain.handover import Handover
from polytrain.secrecy import without_secrets
from polytrain.tracking.journal import Journal, locked, write_whole
from polytrain.tracking.login import uri_of_environment
from polytrain.tracking.store import AwayError, Store, absolute_uri, batches, clean_key, origin_tags

INTERVAL_S = 5.0
LONGEST_WAIT_S = 15.0
PROGRESS, PROGRESS_S = "polytrain.progress", 30.0
"""The tag that says how far a run is, and the time between two of them: each is a line of the journal."""


def local_uri(output: str | Path) -> str:
    """The tracking URI of the sqlite store under the folder `output`; where that is a URI, under this machine's `runs`:
    a database needs a disk."""
    local = storage.local_path(str(output))
    return f"sqlite:///{(Path(local) if local else base_folder() / 'runs').absolute() / 'mlflow.db'}"


def artifact_root(output: str | Path) -> str | None:
    """Where the artifacts of sqlite stores go under the folder `output`; None: beside the database."""
    local = storage.local_path(str(output))
    return local and str(Path(local) / "mlartifacts")


def chosen_uri(asked: str | None, output: str | Path) -> str:
    """The store that a run goes to: the one asked for, else MLFLOW_TRACKING_URI's, else the one under `output`."""
    return asked or uri_of_environment() or local_uri(output)


def history_of(folder: str | Path) -> Iterator[tuple[str, float, int]]:
    """Every metric that the run in `folder` recorded, as (name, value, step), in the order of recording."""
    journal = Journal(Path(folder))
    try:
        for entry in journal:
            for key, value, step, _ in entry.get("metrics", ()):
                yield key, value, step
    finally:
        journal.close()


class Tracker:
    """One run's record: journal first, MLflow behind it. Made by `open` and `resume`.

    No call waits for MLflow or raises because of it, but for `flush` and `close`, which wait as long as they are told.
    Several trackers, also in several processes, may record one run at a time.

    `notice` is a sentence for the user about how the record was opened, or None; `away` says, while it lasts, that
    MLflow does not take what is recorded (it is kept, and sent later); `refused` lists what it will never take, with
    its reason.
    """

    def __init__(
        self, folder: Path, state: dict[str, Any], notice: str | None = None, handover: Handover | None = None
    ) -> None:
        self.folder = folder
        self._handover = handover
        self.run_id: str = state["run_id"]
        self.experiment_id: str = state["experiment_id"]
        self.uri: str = state["uri"]
        self.notice = notice
        self.away: str | None = None
        self.refused: list[str] = []
        self._state = state
        self._journal = Journal(folder)
        # The local store of one machine is nothing to be made anew on another.
        self._store = Store(self.uri, state["artifact_root"], create=handover is None)
        self._params: set[str] = set()
        self._datasets: set[tuple[str, str, str]] = set()
        self._highest: dict[str, int] = {}
        self._progress_told = -math.inf
        self._read_back()
        self._changed = threading.Condition()
        self._delivered = self._journal.cursor.get(self.run_id, 0)
        self._hurry = False
        self._closing = False
        self._thread = threading.Thread(target=self._carry, name="mlflow-delivery", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        uri: str,
        fallback_uri: str,
        experiment: str,
        run_name: str,
        artifact_root: str | None = None,
        tags: dict[str, str] | None = None,
        params: dict[str, Any] | None = None,
        parent_run_id: str | None = None,
        handover: Handover | None = None,
    ) -> Tracker:
        """Create the run of `folder`, or continue it: its id and store stand in `folder/run.json`.

        When the store at `uri` does not answer within seconds, the run is created in `fallback_uri` (sqlite) and
        `notice` says so. In sqlite stores, a new experiment's artifacts go to `artifact_root`/<experiment name>;
        without one, to `mlartifacts` beside the database. With a `handover`, the run is what was published last, and
        is published from here. Raises RuntimeError when the fallback fails as well, StorageError.
        """
        folder = Path(folder).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if handover:
            handover.fetch()
        uri, fallback_uri = absolute_uri(uri), absolute_uri(fallback_uri)
        with locked(folder / "run.lock"):
            state = _read_state(folder)
            if state is None:
                run = {
                    "experiment": experiment,
                    "name": run_name,
                    "start_ms": _now_ms(),
                    "tags": origin_tags() | ({"mlflow.parentRunId": parent_run_id} if parent_run_id else {}),
                }
                state, notice = _create(run, uri, fallback_uri, artifact_root)
                write_whole(folder / "run.json", state)
            else:
                notice = _find_again(state, uri, folder)
        tracker = cls(folder, state, notice, handover)
        tracker._journal.append({"status": ["RUNNING", None]})
        tracker.params(params or {})
        tracker.tags(tags or {})
        return tracker

    @classmethod
    def resume(cls, folder: str | Path, *, step: int = 0, handover: Handover | None = None) -> Tracker:
        """Continue the run of `folder/run.json`, as a training worker does that goes on at `step`.

        A metric whose step the journal already holds for that name is not recorded again, so steps that are trained a
        second time after a crash show once, with the value of the first time. Raises FileNotFoundError without a run,
        with a `handover` StorageError.
        """
        folder = Path(folder).absolute()
        if handover:
            handover.fetch()
        state = _read_state(folder)
        if state is None:
            raise FileNotFoundError(f"{folder / 'run.json'}: no run was opened in this folder")
        tracker = cls(folder, state, None, handover)
        highest = max(tracker._highest.values(), default=0)
        if 0 < step < highest:
            tracker.notice = (
                f"Steps {step + 1} to {highest} are trained again; their metrics were recorded the first time and stay."
            )
        return tracker

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record values by name at a step, NaN and infinity included. Takes microseconds, about 20."""
        now = _now_ms()
        rows = [
            [key, float(value), int(step), now]
            for key, value in zip(map(clean_key, values), values.values(), strict=True)
            if step > self._highest.get(key, -1)
        ]
        if rows:
            self._journal.append({"metrics": rows})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags; a later value replaces an earlier one."""
        if values:
            self._journal.append({"tags": {clean_key(key): str(value) for key, value in values.items()}})

    def progress(self, values: Mapping[str, Any], *, force: bool = False) -> None:
        """Say how far the run is to whoever watches from another machine; without `force` only now and then."""
        now = time.monotonic()
        if force or now - self._progress_told >= PROGRESS_S:
            self._progress_told = now
            self.tags({PROGRESS: json.dumps({**values, "written": time.time()})})

    def params(self, values: Mapping[str, Any]) -> None:
        """Record parameters. MLflow never changes one: the first value of a run stays."""
        new = {key: str(value) for key, value in zip(map(clean_key, values), values.values(), strict=True)}
        new = {key: value for key, value in new.items() if key not in self._params}
        if new:
            self._params |= set(new)
            self._journal.append({"params": new})

    def artifact(self, path: str | Path, folder: str = "") -> None:
        """Hand over a file or directory, to lie in `folder` among the run's artifacts. It is copied in the background:
        leave it there until `close`."""
        path = Path(path).absolute()
        if self._handover and path.is_relative_to(self.folder):
            path = path.relative_to(self.folder)  # whoever delivers it may find it elsewhere
        self._journal.append({"artifact": [str(path), folder]})

    def dataset(self, *, name: str, uri: str, digest: str, context: str, profile: dict) -> None:
        """Record a dataset as input of the run. MLflow keeps one input for a pair of name and digest."""
        if (name, digest, context) not in self._datasets:
            self._datasets.add((name, digest, context))
            entry = {"name": name, "uri": uri, "digest": digest, "context": context, "profile": profile}
            self._journal.append({"dataset": json.loads(json.dumps(entry, default=str))})

    def flush(self, timeout_s: float) -> bool:
        """Wait until MLflow has everything recorded so far; False if it does not in time."""
        self._journal.sync()
        goal = self._journal.size
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: self._delivered >= goal, timeout_s)
            self._hurry = False
        return done and self._journal.complete

    def detach(self, timeout_s: float = 10.0) -> bool:
        """Flush and stop recording here without ending the run, as a training worker does. With a handover, raises
        StorageError where the record can't be handed over."""
        done = self.flush(timeout_s)
        self._stop()
        if self._handover:
            self._handover.publish()
        return done

    def end(self, status: str = "FINISHED", timeout_s: float = 5.0) -> bool:
        """End the run as FINISHED, FAILED or KILLED, waiting shortly. False when MLflow does not have it all: then
        the journal keeps it, for `resume` and `close` to deliver."""
        self._journal.append({"status": [status, _now_ms()]})
        return self.detach(timeout_s)

    def close(self, status: str = "FINISHED", timeout_s: float = 60.0) -> str | None:
        """End the run as FINISHED, FAILED or KILLED. None when MLflow has it all.

        When the store is away and stays away for `timeout_s`, the whole journal goes into a run of the fallback store
        (the same one each time); the sentence returned says so, or what else was not taken.
        """
        self._journal.append({"status": [status, _now_ms()]})
        done = self.flush(timeout_s)
        self._stop()
        problems = [] if done else [self._copy()]
        if self._handover:
            try:
                self._handover.publish()
            except StorageError as error:
                problems.append(f"The end of the record is not in the run's folder: {error}.")
        if self.refused:
            problems.append(f"MLflow refused {len(self.refused)} of the run's entries; the first: {self.refused[0]}.")
        return without_secrets(" ".join(problems)) or None

    def _read_back(self) -> None:
        """Learn what the journal already holds."""
        for entry in self._journal:
            for key, _, step, _ in entry.get("metrics", ()):
                if step > self._highest.get(key, -1):
                    self._highest[key] = step
            self._params |= set(entry.get("params", ()))
            if held := entry.get("dataset"):
                self._datasets.add((held["name"], held["digest"], held["context"]))

    def _carry(self) -> None:
        """The background thread: deliver, sleep, and sleep longer while the store is away."""
        wait = INTERVAL_S
        while True:
            with self._changed:
                if not self._closing:
                    self._changed.wait(0.01 if self._hurry else wait)
                if self._closing:
                    return
            try:
                self._deliver(self._store, self.run_id)
                self.away, wait = None, INTERVAL_S
            except Exception as error:  # whatever it is, training goes on and the journal keeps everything
                told = isinstance(error, StorageError)
                self.away = without_secrets(str(error)) if told else f"MLflow at {self.uri} does not answer ({error})"
                wait = min(2 * wait, LONGEST_WAIT_S)
                with self._changed:
                    self._changed.wait(0.5 if self._hurry else 0)
            with self._changed:
                self._changed.notify_all()

    def _deliver(self, store: Store, run_id: str) -> None:
        """Send everything that the journal holds beyond the cursor."""
        journal = self._journal
        journal.sync()
        if self._handover:
            self._handover.publish()
        while not self._closing or store is not self._store:
            with locked(journal.lock_path):
                # Another process may have delivered meanwhile; a power cut may have shortened the journal.
                start = min(journal.cursor.get(run_id, 0), journal.size)
                entries = journal.read(start)
                for end, kind, items in batches(entries):
                    if kind == "artifact" and self._handover:
                        items = [[str(self._handover.bring(path)), into] for path, into in items]
                    if kind:
                        self.refused += store.deliver(run_id, kind, items)
                    if end > start:
                        journal.advance(run_id, end)
            if store is self._store:
                with self._changed:
                    self._delivered = entries[-1][0] if entries else start
                    self._changed.notify_all()
            if not entries:
                return

    def _stop(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=5.0)
        self._journal.sync()

    def _copy(self) -> str:
        """Bring the whole journal into the fallback store; a sentence about where the record now is."""
        where = self._handover.place if self._handover else self._journal.path
        kept = f"everything is kept in {where} and is sent when the run is opened again"
        fallback_uri = self._state["fallback_uri"]
        trouble = self.away or f"MLflow at {self.uri} did not take the whole record in time"
        if fallback_uri == self.uri:
            return f"{trouble}; {kept}."
        try:
            store = Store(fallback_uri, self._state["artifact_root"])
            with locked(self.folder / "run.lock"):
                state = _read_state(self.folder) or self._state
                if state["copy"] is None or not store.has_run(state["copy"]):
                    run = {**state["run"], "tags": {**state["run"]["tags"], "polytrain.copy_of": self.run_id}}
                    state["copy"], _ = store.create_run(run)
                    write_whole(self.folder / "run.json", state)
            self._deliver(store, state["copy"])
        except Exception as error:
            return f"{trouble}, nor did {fallback_uri} ({error}); {kept}."
        return f"{trouble}; the whole run is recorded in {fallback_uri} as run {state['copy']}."


def move(folder: str | Path, uri: str, parent_run_id: str) -> str | None:
    """Bring a run that began in the fallback store to the store it was meant for; its new id, None if that is away.

    The journal is sent there from its beginning by the next tracker of the folder.
    """
    folder = Path(folder).absolute()
    with locked(folder / "run.lock"):
        state = _read_state(folder)
        if state is None:
            raise FileNotFoundError(f"{folder / 'run.json'}: no run was opened in this folder")
        state["uri"] = absolute_uri(uri)
        state["run"]["tags"] |= {"mlflow.parentRunId": parent_run_id, "polytrain.copy_of": state["run_id"]}
        try:
            state["run_id"], state["experiment_id"] = Store(uri, state["artifact_root"]).create_run(state["run"])
        except AwayError:
            return None
        write_whole(folder / "run.json", state)
    return state["run_id"]


def _create(
    run: dict[str, Any], uri: str, fallback_uri: str, artifact_root: str | None
) -> tuple[dict[str, Any], str | None]:
    """Create a run in `uri`, else in the fallback: the content of run.json, and a notice."""
    notice = None
    root = str(Path(artifact_root).absolute()) if artifact_root else None
    try:
        run_id, experiment_id = Store(uri, root).create_run(run)
    except AwayError as error:
        if uri == fallback_uri:
            raise RuntimeError(f"The local MLflow store {uri} cannot be used: {error}") from error
        notice = f"MLflow at {uri} cannot be reached: {error}. This run is recorded in {fallback_uri} instead."
        try:
            run_id, experiment_id = Store(fallback_uri, root).create_run(run)
        except AwayError as second:
            raise RuntimeError(
                f"MLflow at {uri} cannot be reached ({error}), nor can the local store {fallback_uri} be used: {second}"
            ) from second
        uri = fallback_uri
    return {
        "run_id": run_id,
        "experiment_id": experiment_id,
        "uri": uri,
        "fallback_uri": fallback_uri,
        "artifact_root": root,
        "copy": None,
        "run": run,
    }, notice


def _find_again(state: dict[str, Any], uri: str, folder: Path) -> str | None:
    """Make sure that the run of run.json is still there, or make it anew from the journal; a notice, if any."""
    store = Store(state["uri"], state["artifact_root"])
    try:
        if not store.has_run(state["run_id"]):
            gone, (state["run_id"], state["experiment_id"]) = state["run_id"], store.create_run(state["run"])
            write_whole(folder / "run.json", state)
            return f"Run {gone} is gone from {state['uri']}; its whole record is sent again, as run {state['run_id']}."
    except AwayError as error:
        return f"MLflow at {state['uri']} cannot be reached: {error}. What this run records is kept and sent later."
    if uri != state["uri"]:
        return f"This run began in {state['uri']} and goes on being recorded there."
    return None


def _read_state(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "run.json").read_text())
    except FileNotFoundError:
        return None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
