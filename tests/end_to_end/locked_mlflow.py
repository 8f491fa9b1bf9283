"""MLflow as cluster/mlflow/kubernetes.yaml starts it, but for its address, over sqlite and a folder or what a test has."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from job_runner import ROOT

ADMIN = "anna"


@dataclass(frozen=True)
class Behind:
    """What takes the place of the manifest's PostgreSQL and bucket, and the secrets that lead there."""

    postgres: str  # HOST:PORT
    artifacts: str  # s3://...
    secrets: Mapping[str, str]


def settings() -> dict[str, str]:
    """The files that the manifest mounts, by name."""
    (mounted,) = [document["data"] for document in _documents() if document["kind"] == "ConfigMap"]
    return mounted


def _documents() -> list[dict]:
    return list(yaml.safe_load_all((ROOT / "cluster" / "mlflow" / "kubernetes.yaml").read_text()))


class LockedServer:
    """A running server: `ask` it something as somebody."""

    def __init__(self, port: int, folder: Path, password: str) -> None:
        self.port, self.folder, self.password = port, folder, password
        self.uri = f"http://localhost:{port}"
        self.uri_with_login = f"http://{ADMIN}:{password}@localhost:{port}"

    def ask(self, *, host: str = "localhost", login: str | None = None, path: str | None = None) -> int:
        """The status of an answer; None for no login. Without a path, experiments are asked for."""
        path, body = (path, None) if path else ("/api/2.0/mlflow/experiments/search", b'{"max_results": 1}')
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=body, headers={"Host": host})
        request.add_header("Content-Type", "application/json")
        if login:
            request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code


@contextlib.contextmanager
def locked_server(folder: Path, port: int, password: str, behind: Behind | None = None) -> Iterator[LockedServer]:
    (deployment,) = [document for document in _documents() if document["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    here = {"--host": "127.0.0.1", "--port": str(port), "--workers": "1"}
    authorization = settings()["auth.ini"]
    if behind is None:
        here |= {
            "--backend-store-uri": f"sqlite:///{folder}/mlflow.db",
            "--artifacts-destination": f"{folder}/artifacts",
        }
        authorization = re.sub("database_uri = .*", f"database_uri = sqlite:///{folder}/auth.db", authorization)
    else:
        here |= {"--artifacts-destination": behind.artifacts}
        authorization = authorization.replace("postgres:5432", behind.postgres)
    words = [word.partition("=") for word in container["args"]]
    # Names of hosts are allowed with the port that they are asked at.
    words = [f"{name}{equals}{here.get(name, value.replace(':5000', f':{port}'))}" for name, equals, value in words]
    if behind is not None:
        words = [word.replace("postgres:5432", behind.postgres) for word in words]
    (folder / "auth.ini").write_text(authorization)
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    environment = os.environ | given | (dict(behind.secrets) if behind else {}) | {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": json.dumps(password)[::-1],
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }  # fmt: skip
    program = [str(Path(sys.executable).parent / container["command"][0]), *container["command"][1:]]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            program + words, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    server = LockedServer(port, folder, password)
    try:
        end = time.monotonic() + 120
        while True:
            assert process.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < end, f"no answer: {(folder / 'server.log').read_text()}"
            with contextlib.suppress(OSError):
                if server.ask(path="/health") == 200:
                    break
            time.sleep(0.3)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
