"""A real S3 API in a process of its own (moto), and a proxy before it that is slow or fails as often as it is told."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from polytrain.data import storage

ACCESS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class S3:
    """The server; `bucket()` makes a bucket of its own for a test."""

    def __init__(self, port: int) -> None:
        self.port, self.buckets = port, 0

    def bucket(self) -> str:
        self.buckets += 1
        uri = f"bucket{self.buckets}"
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{uri}", method="PUT")
        urllib.request.urlopen(request).close()
        return f"s3://{uri}"


@contextlib.contextmanager
def s3_server() -> Iterator[S3]:
    """Also sets the environment that leads to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port, process)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (ACCESS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}).items():
                patch.setenv(name, value)
            for name in ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "http_proxy", "HTTP_PROXY"):
                patch.delenv(name, raising=False)
            storage._store.cache_clear()
            yield S3(port)
    finally:
        process.kill()
        process.wait()
        storage._store.cache_clear()


def _wait(port: int, process: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert process.poll() is None, "the S3 server did not start"
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.05)
    raise TimeoutError("the S3 server did not answer")


class Proxy:
    """Passes requests on; the first of `faults` befalls the next request, and so on.

    A fault is a status to answer with (503), seconds to wait first (0.2), "drop" (the connection is closed without an
    answer) or "cut" (half of the body comes).
    """

    def __init__(self, backend: int) -> None:
        self.backend, self.faults, self.requests = backend, [], []
        self.lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.query = f"?endpoint_override=127.0.0.1:{self.server.server_port}&scheme=http"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fault(self, request: str) -> object:
        with self.lock:
            self.requests.append(request)
            return self.faults.pop(0) if self.faults else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Proxy

    def _pass_on(self) -> None:
        body = self._body()
        fault = self.owner.fault(f"{self.command} {self.path}")
        if fault == "drop":
            self.close_connection = True
            return
        if isinstance(fault, int):
            self.send_response(fault)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if isinstance(fault, float):
            time.sleep(fault)
        backend = http.client.HTTPConnection("127.0.0.1", self.owner.backend)
        passed = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "expect")}
        backend.request(self.command, self.path, body, passed | {"Content-Length": str(len(body))})
        answer = backend.getresponse()
        content = answer.read()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
        if fault == "cut":
            self.close_connection = True
        backend.close()

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

    def log_message(self, *_: object) -> None:
        pass
