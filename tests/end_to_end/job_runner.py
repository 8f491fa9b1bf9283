"""Real runs in processes of their own: their own Ray, home and temporary folder, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Job:
    """`python jobs/cotrain.py` (or another job) as a user would start it, in a session of its own."""

    def __init__(self, arguments, environment, folder, job="cotrain.py"):
        self.log = folder / f"log-{time.monotonic_ns()}"
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "jobs" / job), *map(str, arguments)],
                stdout=out, stderr=subprocess.STDOUT, cwd=folder, env=environment, start_new_session=True,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait(self, timeout=180) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {timeout} s:\n{self.output}")

    def until(self, condition, timeout=120):
        """Wait for something to become true while the job runs."""
        end = time.monotonic() + timeout
        while not (value := condition()):
            if self.process.poll() is not None:
                pytest.fail(f"ended with {self.process.returncode} too early:\n{self.output}")
            if time.monotonic() > end:
                pytest.fail(f"waited {timeout} s in vain:\n{self.output}")
            time.sleep(0.02)
        return value

    def kill(self):
        """kill -9 of the whole job: the driver, and with it every process of its Ray."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


class Runner:
    """Starts jobs in one folder and cleans up after them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        home = folder / "home"
        home.mkdir()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "POLYTRAIN_"))}
        # A mark that all processes of the test inherit, to find what they leave running.
        self.mark = f"polytrain-test-{os.getpid()}-{time.monotonic_ns()}"
        self.environment = kept | {"HOME": str(home), "POLYTRAIN_TEST_MARK": self.mark, "PYTHONUNBUFFERED": "1"}
        self.jobs: list[Job] = []

    def start(self, *arguments, job="cotrain.py") -> Job:
        started = Job(arguments, self.environment, self.folder, job)
        self.jobs.append(started)
        return started

    def run(self, *arguments, code=0, job="cotrain.py") -> str:
        started = self.start(*arguments, job=job)
        assert started.wait() == code, started.output
        return started.output

    def processes(self) -> dict[int, str]:
        """Everything that runs and descends from a job of this runner, by pid."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def named(self, name: str) -> list[int]:
        return [pid for pid, command in self.processes().items() if name in command]

    def clean(self) -> None:
        for job in self.jobs:
            job.kill()
        for _ in range(50):
            remaining = self.processes()
            for pid in remaining:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not remaining:
                return
            time.sleep(0.1)


def only_run(output: Path) -> Path:
    """The one run folder below an output folder."""
    (folder,) = [path.parent for path in output.glob("*/recipe.yaml")]
    return folder
