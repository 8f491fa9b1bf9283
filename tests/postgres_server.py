"""A real PostgreSQL in a process of its own, with the databases that an MLflow server with a login needs."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PASSWORD = "planted-secret-of-the-database"


@contextlib.contextmanager
def postgres_server(databases: str = "") -> Iterator[str]:
    """The address of a server whose user and database are `mlflow`, after the SQL of `databases`.

    PostgreSQL does not run as root: then it runs as the user `postgres`.
    """
    psycopg2 = pytest.importorskip("psycopg2", reason="psycopg2-binary is not installed")
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
            cwd=folder, check=True, capture_output=True, timeout=200,
        )  # fmt: skip
        port = free_port()
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [*as_user, programs[-1] / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder,
                 "-h", "127.0.0.1", "-c", "fsync=off"],
                cwd=folder, stdout=log, stderr=log,
            )  # fmt: skip
        until(lambda: socket.create_connection(("127.0.0.1", port), 1).close(), process, folder / "log", 120)
        with contextlib.closing(
            psycopg2.connect(host="127.0.0.1", port=port, user="mlflow", password=PASSWORD, dbname="postgres")
        ) as connection:
            connection.autocommit = True  # databases are not made within a transaction
            for statement in filter(None, ("CREATE DATABASE mlflow", databases)):
                connection.cursor().execute(statement)
        yield f"127.0.0.1:{port}"
    finally:
        if process is not None:
            process.send_signal(signal.SIGQUIT)
            process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


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
