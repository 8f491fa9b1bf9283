"""A real MLflow server over a real PostgreSQL, each in a process of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PASSWORD = "planted-secret-of-the-database"


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """The URI of an empty database. PostgreSQL does not run as root: then it runs as the user `postgres`."""
    pytest.importorskip("psycopg2", reason="psycopg2-binary is not installed")
    programs = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if found := shutil.which("initdb"):
        programs.append(Path(found).parent)
    if not programs:
        pytest.skip("no PostgreSQL server is installed (initdb was not found)")
    user, as_user = getpass.getuser(), []
    if os.geteuid() == 0:
        user, as_user = "postgres", ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
    folder = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp"))  # pytest's folders are closed to other users
    process = None
    try:
        (folder / "password").write_text(PASSWORD)
        for path in (folder, folder / "password"):
            shutil.chown(path, user)
        subprocess.run(
            [*as_user, programs[-1] / "initdb", "-D", folder / "data", "-U", "mlflow", "--auth=scram-sha-256",
             f"--pwfile={folder / 'password'}", "--no-sync", "--encoding=UTF8", "--locale=C"],
            cwd=folder, check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        port = free_port()
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [*as_user, programs[-1] / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder,
                 "-h", "127.0.0.1", "-c", "fsync=off"],
                cwd=folder, stdout=log, stderr=log,
            )  # fmt: skip
        until(lambda: socket.create_connection(("127.0.0.1", port), 1).close(), process, folder / "log", 30)
        yield f"postgresql+psycopg2://mlflow:{PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        if process is not None:
            process.send_signal(signal.SIGQUIT)
            process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def mlflow_server(folder: Path, database: str, artifacts: str, environment: Mapping[str, str]) -> Iterator[str]:
    """The URI of a server that keeps runs in `database` and files in the store `artifacts`."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    settings = {
        "MLFLOW_BACKEND_STORE_URI": database,  # not among the arguments, where `ps` would show its password
        "MLFLOW_ARTIFACTS_DESTINATION": artifacts,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    log = folder / "mlflow.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=folder, stdout=out, stderr=out, env={**environment, **settings}, start_new_session=True
        )
    try:
        uri = f"http://127.0.0.1:{port}"
        until(lambda: urllib.request.urlopen(f"{uri}/health", timeout=5).close(), process, log, 180)
        yield uri
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(asked, process: subprocess.Popen, log: Path, timeout: float) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(OSError):
            asked()
            return
        time.sleep(0.1)
    raise TimeoutError(log.read_text()[-3000:])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
