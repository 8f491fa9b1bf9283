"""Which runs go on, how far and how fast, when they will be done and what went wrong last.

Two sources tell: the run folders below an output (a path or a store's URI), and MLflow, whose runs carry the same words
in a tag: so from a machine that sees nothing but the tracking server, too. Nothing is written, nothing is locked.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from polytrain.command_line import BAD_INPUT, told
from polytrain.data import storage
from polytrain.data.storage import StorageError
from polytrain.report import duration, table
from polytrain.run_folder import RunFolder, open_run
from polytrain.secrecy import without_secrets
from polytrain.tracking import PROGRESS, AwayError, Finder, FoundRun
from polytrain.tracking.login import uri_of_environment

OF_A_RUN = {"run.json", "start.json", "progress.json", "result.json"}
"""A folder that has one of these is a run's."""

QUIET_S = {"folder": 60.0, "mlflow": 150.0}
"""A run that goes on tells its folder every second, or two, how far it is, and MLflow every half minute."""

QUIET_STEPS = 20
"""Nor is it silent for less than so many of its steps."""

LONG_SILENT_S = 7 * 86400.0
MOST_ENDED = 10
PHASES = {"train": "training", "val": "validating", "test": "testing", "finishing": "finishing", "trials": "sweeping"}
ENDS = {"FINISHED": "finished", "KILLED": "stopped", "FAILED": "failed"}
WITH_STEPS = ("cotrain", "single_task", "trial", "sweep")
"""Kinds of runs that tell how far they are."""


@dataclass(frozen=True)
class Status:
    """What is known of one run."""

    name: str
    state: str
    """starting, running or what of PHASES it does; silent; finished, stopped or failed."""
    told: float
    """When that was so, in seconds since the epoch."""
    run_id: str | None = None
    step: int | None = None
    steps: int | None = None
    rate: float | None = None
    """Steps a second, of a sweep trials."""
    examples_per_s: float | None = None
    best: float | None = None
    """Of validation, in percent."""
    fault: str = ""

    @property
    def ended(self) -> bool:
        return self.state in ENDS.values()

    @property
    def left_s(self) -> float | None:
        """Until the last step, at the rate so far."""
        if self.ended or self.state == "silent" or not self.rate:
            return None
        return (self.steps - self.step) / self.rate


# --- one run ------------------------------------------------------------------------------------------------------


def of_folder(run: RunFolder, name: str, changed: float, now: float) -> Status:
    """What a run's folder says; `changed` is when a file there last did."""
    progress, result, start = run.progress(), run.result(), run.start()
    passed_over = list(start.get("faults", ()))
    about = {"name": name, "run_id": run.record().get("run_id"), **_far(progress, passed_over)}
    if result.get("status") in ENDS.values():
        step = {"step": result["step"]} if "step" in result else {}
        fault = {"fault": _first_line(result["message"])} if "message" in result else {}
        return Status(**about | {"state": result["status"], "told": changed} | step | fault)
    if not progress:
        return Status(**about, state="starting" if now - changed < QUIET_S["folder"] else "silent", told=changed)
    return Status(**about, state=_state(progress, now, QUIET_S["folder"]), told=progress["written"])


def of_record(found: FoundRun, now: float) -> Status:
    """What MLflow says of a run."""
    progress = _json(found.tags.get(PROGRESS, ""))
    about = {"name": found.name, "run_id": found.run_id, **_far(progress, [])}
    if found.status in ENDS:
        fault = {"fault": _first_line(found.tags.get("polytrain.error", ""))} if found.status == "FAILED" else {}
        told = (found.end_ms or found.start_ms) / 1000
        return Status(**about | {"state": ENDS[found.status], "told": told} | fault)
    if progress:
        return Status(**about, state=_state(progress, now, QUIET_S["mlflow"]), told=progress["written"])
    began = found.start_ms / 1000
    if found.tags["polytrain.kind"] not in WITH_STEPS:
        return Status(**about, state="running" if now - began < LONG_SILENT_S else "silent", told=began)
    return Status(**about, state="starting" if now - began < QUIET_S["mlflow"] else "silent", told=began)


def _far(progress: Mapping[str, Any], faults: list[str]) -> dict[str, Any]:
    """How far a run is, in the words of `Status`."""
    if not progress:
        return {"fault": "; ".join(faults)}
    lost = progress.get("attempt", 1) - 1
    if lost:
        times = "once" if lost == 1 else f"{lost} times"
        faults = [*faults, f"a worker was lost {times}; since then it goes on from step {progress['since']:,}"]
    rate = progress["steps_here"] / max(progress["seconds"], 1e-9)
    return {
        "step": progress["step"],
        "steps": progress["steps"],
        "rate": rate or None,
        "examples_per_s": progress.get("examples_per_s"),
        "best": progress.get("best"),
        "fault": "; ".join(faults),
    }


def _state(progress: Mapping[str, Any], now: float, quiet_s: float) -> str:
    rate = progress["steps_here"] / max(progress["seconds"], 1e-9)
    if now - progress["written"] > max(quiet_s, QUIET_STEPS / rate if rate else 0.0):
        return "silent"
    return PHASES.get(progress["phase"], progress["phase"])


def _json(text: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError:
        return {}


def _first_line(text: str) -> str:
    first, _, more = without_secrets(text).strip().partition("\n")
    return f"{first} ..." if more else first


# --- all runs of a place ------------------------------------------------------------------------------------------


def is_tracking(place: str) -> bool:
    """Whether a place is an MLflow store: its server's address or its database."""
    scheme = urlsplit(place).scheme.partition("+")[0]
    return scheme in ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks") or place.endswith(".db")


def in_mlflow(uri: str, now: float, ended: int) -> Iterator[Status]:
    """The runs of a tracking store that go on, and the newest `ended` of the others. Raises AwayError."""
    finder = Finder(uri, create=False)
    for found in (*finder.going(), *islice(finder.ended(), ended)):
        yield of_record(found, now)


def in_folder(place: str, now: float) -> Iterator[Status]:
    """The runs of an output folder, their trials included, or the one run whose folder it is. Raises StorageError."""
    if status := _run_at(place, _last_name(place), now):
        yield status
        return
    for entry in _folders(place):
        below = storage.join(place, entry)
        if entry == "trials":
            # Those that have not ended: a sweep has hundreds, and its own table.
            trials = (_run_at(storage.join(below, name), f"trials/{name}", now) for name in _folders(below))
            yield from (trial for trial in trials if trial and not trial.ended)
        elif entry != "mlartifacts" and (status := _run_at(below, entry, now)):
            yield status


def _folders(place: str) -> list[str]:
    return [entry.base_name for entry in storage.entries(place) if entry.type is pa.fs.FileType.Directory]


def _run_at(place: str, name: str, now: float) -> Status | None:
    files = [entry for entry in storage.entries(place) if entry.type is pa.fs.FileType.File]
    if not any(file.base_name in OF_A_RUN for file in files):
        return None
    return of_folder(open_run(place), name, max(file.mtime_ns for file in files) / 1e9, now)


def _last_name(place: str) -> str:
    return os.path.basename(os.path.abspath(storage.local_path(place) or urlsplit(place).path))


def merged(statuses: Iterable[Status]) -> list[Status]:
    """Each run once, as the last word on it has it: those that go on first, the newest first."""
    known: dict[Any, Status] = {}
    for number, status in enumerate(statuses):
        key = status.run_id or number
        if key not in known or status.told > known[key].told:
            known[key] = status
    return sorted(known.values(), key=lambda status: (status.ended, status.state == "silent", -status.told))


# --- telling ------------------------------------------------------------------------------------------------------


def text(statuses: Sequence[Status], now: float, *, everything: bool = False) -> str:
    """The table and, below it, what went wrong."""
    shown = list(statuses) if everything else list(_recent(statuses, now))
    header = ["run", "state", "step", "steps/s", "examples/s", "left", "best val", "last heard"]
    lines = [table(header, [_row(status, now) for status in shown])] if shown else []
    faults = [f"{status.name}: {status.fault}" for status in shown if status.fault]
    lines += ["", *faults] if faults else []
    if any(status.state == "silent" for status in shown):
        lines += ["", "silent: killed, cut off, or at a very long step. The same command goes on from its checkpoint."]
    if more := len(statuses) - len(shown):
        lines += ["", f"{more} more that ended, or fell silent, earlier: --all shows them"]
    return "\n".join(lines).strip()


def _recent(statuses: Sequence[Status], now: float) -> Iterator[Status]:
    ended = 0
    for status in statuses:
        ended += status.ended
        if ended <= MOST_ENDED if status.ended else status.state != "silent" or now - status.told < LONG_SILENT_S:
            yield status


def _row(status: Status, now: float) -> list[str]:
    step = "-" if status.step is None else f"{status.step:,}"
    return [
        status.name,
        status.state,
        step if status.steps is None else f"{step}/{status.steps:,}",
        "-" if status.rate is None else f"{status.rate:.3g}",
        "-" if not status.examples_per_s else f"{status.examples_per_s:,.0f}",
        "-" if status.left_s is None else duration(status.left_s),
        "-" if status.best is None else f"{status.best:.1f}",
        f"{_ago(now - status.told)} ago",
    ]


def _ago(seconds: float) -> str:
    for limit, unit, words in ((100, 1, "s"), (6000, 60, "min"), (48 * 3600, 3600, "h"), (math.inf, 86400, "days")):
        if seconds < limit:
            return f"{max(0.0, seconds) / unit:.0f} {words}"
    raise AssertionError


# --- the command --------------------------------------------------------------------------------------------------


def status_command(usage: str, arguments: Sequence[str] | None = None) -> int:
    """`python jobs/status.py [PLACE ...] [--all]`. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python jobs/status.py",
        description=usage,
        epilog="A run tells its folder how far it is every second, and MLflow every half minute. Without PLACE: "
        "./runs, and the server that MLFLOW_TRACKING_URI names.",
    )
    help_place = "an output folder (path or URI), a run's folder, or MLflow's address (http://..., sqlite:///...)"
    parser.add_argument("places", nargs="*", metavar="PLACE", help=help_place)
    parser.add_argument("--all", action="store_true", help="also what ended, or fell silent, long ago")
    options = parser.parse_args(arguments)
    return told(lambda: show(options.places or default_places(), everything=options.all))


def default_places() -> list[str]:
    """Where runs are to be expected."""
    return [*filter(os.path.isdir, ["runs"]), *filter(None, [uri_of_environment()])] or ["runs"]


def show(places: Sequence[str], *, everything: bool = False) -> int:
    """Print what goes on at these places; what can't be looked at is named on stderr."""
    now = time.time()
    found: list[Status] = []
    troubles = 0
    for place in places:
        try:
            found += _look(place, now, everything)
        except (AwayError, StorageError) as error:
            troubles += 1
            print(f"error: {without_secrets(f'{place}: {error}')}", file=sys.stderr)
    if troubles == len(places):
        return BAD_INPUT
    print(text(merged(found), now, everything=everything) or without_secrets(f"no runs in {', '.join(places)}"))
    return 0


def _look(place: str, now: float, everything: bool) -> list[Status]:
    if is_tracking(place):
        return list(in_mlflow(place, now, sys.maxsize if everything else MOST_ENDED))
    if storage.kind(place) is not pa.fs.FileType.Directory:
        raise StorageError("there is no such folder; an output folder of jobs/cotrain.py or MLflow's address would do")
    return list(in_folder(place, now))
