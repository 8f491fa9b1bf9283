"""The MLflow side: reach a store, find or create experiment and run, deliver what a journal holds.

Delivery may repeat itself without harm: MLflow keeps a metric of the same key, step, timestamp and value once, and
parameters, tags, datasets and artifacts overwrite themselves. So "at least once" from the journal is exactly once here.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import posixpath
import re
import socket
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from polytrain.secrecy import without_secrets
from polytrain.tracking.journal import locked
from polytrain.tracking.login import with_login

CONNECT_S = 3.0
OPENING_S = 10
DELIVERY_S = 60
MOST = {"metrics": 1000, "params": 100, "tags": 100}
"""Entities that MLflow takes in one call."""
LONGEST = {"params": 6000, "tags": 8000}
"""Characters of a value; a longer one is cut (the recipe is an artifact as well, whole)."""
KEY_LENGTH = 250
DIGEST_LENGTH = 36

_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # MLflow's own retries take minutes; the journal retries
    "GIT_PYTHON_REFRESH": "quiet",
}


class AwayError(Exception):
    """The store does not answer, or no longer knows the run: keep everything and try again later."""


class RefusedError(Exception):
    """The store answers and will not take this one entry."""


def clean_key(key: str) -> str:
    """A metric or parameter name that MLflow accepts: other characters become `_`, at most 250 of them."""
    return posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", key).strip("/") or "_")[:KEY_LENGTH]


def clip(value: Any, kind: str) -> str:
    """The value as the text of a parameter or tag (`kind`), cut to what MLflow takes."""
    text = str(value)
    return text if len(text) <= LONGEST[kind] else text[: LONGEST[kind] - 3] + "..."


def absolute_uri(uri: str) -> str:
    """A tracking URI that means the same in every working directory; a plain path is a sqlite file."""
    if "://" not in uri and not uri.startswith(("file:", "databricks")):
        uri = f"sqlite:///{uri}"
    path = sqlite_path(uri)
    return uri if path is None else f"sqlite:///{path.absolute()}"


def sqlite_path(uri: str) -> Path | None:
    """The database file of a sqlite URI; None for any other."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


class Store:
    """One MLflow tracking store: a server or a sqlite file, which is made where it is not there (`create`)."""

    def __init__(self, uri: str, artifact_root: str | None = None, *, create: bool = True) -> None:
        self.uri, self.create = uri, create
        self.artifact_root = artifact_root
        self._client: Any = None

    def reach(self) -> None:
        """Raise AwayError unless the store answers within seconds."""
        address = urllib.parse.urlsplit(self.uri)
        if address.scheme not in ("http", "https") or urllib.request.getproxies().get(address.scheme):
            return
        # A black hole would hold MLflow for its whole timeout; a socket tells in CONNECT_S.
        try:
            port = address.port or {"http": 80, "https": 443}[address.scheme]
            socket.create_connection((address.hostname or "", port), timeout=CONNECT_S).close()
        except (OSError, ValueError) as error:
            raise AwayError(f"no connection ({error})") from error

    @property
    def client(self) -> Any:
        """The MlflowClient of this store, made (and a sqlite file initialised) at first use."""
        if self._client is None:
            for name, value in _SETTINGS.items():
                os.environ.setdefault(name, value)
            from mlflow import MlflowClient

            for name in ("mlflow", "alembic"):
                logging.getLogger(name).setLevel(logging.ERROR)
            path = sqlite_path(self.uri)
            if path is None:
                whole = with_login(self.uri)
                self._client = MlflowClient(whole, whole)
                return self._client
            if not self.create and not path.exists():
                raise AwayError(f"there is no {path} on this machine")
            path.parent.mkdir(parents=True, exist_ok=True)
            # Two processes that create one database at once break each other's schema migration.
            with locked(path.with_name(f".{path.name}.lock")):
                client = MlflowClient(self.uri, self.uri)
                client.search_experiments(max_results=1)
            self._client = client
        return self._client

    def experiment(self, name: str) -> str:
        """The id of the experiment, created or restored from deletion where need be."""
        client = self.client
        for attempt in (1, 2):
            found = client.get_experiment_by_name(name)
            if found is not None:
                if found.lifecycle_stage == "deleted":
                    client.restore_experiment(found.experiment_id)
                return found.experiment_id
            try:
                return client.create_experiment(name, artifact_location=self._artifact_location(name))
            except Exception:
                if attempt == 2:
                    raise
                time.sleep(0.2)  # another process was faster: it is there now
        raise AssertionError

    def _artifact_location(self, experiment: str) -> str | None:
        database = sqlite_path(self.uri)
        if database is None:
            return None  # a server knows where its artifacts go
        root = Path(self.artifact_root) if self.artifact_root else database.parent / "mlartifacts"
        return (root.absolute() / (re.sub(r"[^\w.\-]", "_", experiment).lstrip(".") or "_")).as_uri()

    def create_run(self, run: dict[str, Any]) -> tuple[str, str]:
        """Create the run that `run` describes (experiment, name, start_ms, tags); its id and its experiment's.

        Raises AwayError, with the reason, when the store cannot do it now or at all.
        """
        self.reach()
        try:
            with _timeout(OPENING_S):
                experiment_id = self.experiment(run["experiment"])
                tags = {key: clip(value, "tags") for key, value in run["tags"].items()}
                created = self.client.create_run(experiment_id, run["start_ms"], tags, run["name"])
        except Exception as error:
            raise AwayError(_reason(error)) from error
        return created.info.run_id, experiment_id

    def has_run(self, run_id: str) -> bool:
        """Whether the run is there; a deleted one is restored. Raises AwayError when the store does not answer."""
        self.reach()
        try:
            with _timeout(OPENING_S):
                if self.client.get_run(run_id).info.lifecycle_stage == "deleted":
                    self.client.restore_run(run_id)
        except Exception as error:
            if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise AwayError(_reason(error)) from error
        return True

    def deliver(self, run_id: str, kind: str, items: list[Any]) -> list[str]:
        """Send items of one kind to the run. Returns a sentence for each item that the store refuses for good.

        Raises AwayError when the store does not answer or does not know the run.
        """
        for attempt in (1, 2, 3):
            try:
                with _timeout(DELIVERY_S):
                    self._send(run_id, kind, items)
                return []
            except Exception as error:
                if isinstance(error, ImportError):
                    raise
                if not self.has_run(run_id):
                    raise AwayError(f"run {run_id} is not there") from error
                if len(items) > 1:
                    half = len(items) // 2
                    return self.deliver(run_id, kind, items[:half]) + self.deliver(run_id, kind, items[half:])
                if attempt == 3:
                    return [f"{kind} {items[0]!r:.200}: {_reason(error)}"]
                time.sleep(0.2 * attempt)
        raise AssertionError

    def _send(self, run_id: str, kind: str, items: list[Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

        client = self.client
        if kind == "metrics":
            client.log_batch(run_id, metrics=[Metric(k, v, t, s) for k, v, s, t in items], synchronous=True)
        elif kind == "params":
            client.log_batch(run_id, params=[Param(k, clip(v, kind)) for k, v in items], synchronous=True)
        elif kind == "tags":
            client.log_batch(run_id, tags=[RunTag(k, clip(v, kind)) for k, v in items], synchronous=True)
        elif kind == "artifact":
            for path, folder in items:
                send = client.log_artifacts if os.path.isdir(path) else client.log_artifact
                send(run_id, path, folder or None)
        elif kind == "dataset":
            client.log_inputs(
                run_id,
                [
                    DatasetInput(
                        Dataset(
                            name=item["name"][:500],
                            digest=item["digest"][:DIGEST_LENGTH],
                            source_type="local",
                            source=json.dumps({"uri": item["uri"]}),
                            profile=json.dumps(item["profile"]),
                        ),
                        [InputTag("mlflow.data.context", item["context"])],
                    )
                    for item in items
                ],
            )
        elif kind == "status":
            status, end_ms = items[-1]
            if status == "RUNNING":
                client.update_run(run_id, status)
            else:
                client.set_terminated(run_id, status, end_ms)


def batches(entries: Iterable[tuple[int, dict[str, Any] | None]]) -> Iterator[tuple[int, str, list[Any]]]:
    """Journal entries as calls to MLflow: (offset behind the last entry, kind, items), neighbours of a kind together.

    Order is kept: a metric is in MLflow before the status that follows it.
    """
    kind, items, end = "", [], 0
    for offset, entry in entries:
        for new_kind, value in (entry or {}).items():
            new_items = list(value.items()) if new_kind in ("params", "tags") else value
            if new_kind not in ("metrics", "params", "tags"):
                new_items = [value]
            for item in new_items:
                if items and (new_kind != kind or len(items) == MOST.get(kind, 1)):
                    yield end, kind, items
                    items = []
                kind = new_kind
                items.append(item)
        end = offset
    if items:
        yield end, kind, items
    elif end:
        yield end, "", []


def origin_tags() -> dict[str, str]:
    """Who and what made the run, under the names MLflow's UI shows."""
    tags = {"mlflow.source.name": sys.argv[0] or "python", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(Exception):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    return tags


@contextlib.contextmanager
def _timeout(seconds: int) -> Iterator[None]:
    """MLflow reads its HTTP timeout from the environment at each call; a user's own setting stays."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(seconds)
    try:
        yield
    finally:
        os.environ.pop(name, None)


def _reason(error: Exception) -> str:
    return " ".join(without_secrets(str(error)).split())[:300] or type(error).__name__
