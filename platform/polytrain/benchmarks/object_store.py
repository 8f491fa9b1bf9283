"""An S3 store on this machine that counts what is asked of it: moto's server, behind a proxy."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType


class CountingStore:
    """`with CountingStore() as store:` a bucket at `store.uri("key")`; `requests` and `bytes` say what was answered.

    Raises ModuleNotFoundError where moto is not installed: it is a need of tests and benchmarks only.
    """

    def __enter__(self) -> CountingStore:
        import moto.server  # noqa: F401, to be told here and not by the process

        self.requests = self.bytes = 0
        self._guard = threading.Lock()
        self._server_port = _free_port()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._server_port)]
        self._server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": self}))
        self._proxy.daemon_threads = True
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        os.environ.setdefault("AWS_ACCESS_KEY_ID", "none")
        os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "none")
        self._make_bucket()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._proxy.shutdown()
        self._proxy.server_close()
        self._server.terminate()
        self._server.wait(10)

    def _make_bucket(self) -> None:
        for _ in range(200):
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self._server_port, timeout=10)
                connection.request("PUT", "/bench")
                connection.getresponse().read()
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError("moto's server did not start")

    def uri(self, key: str) -> str:
        endpoint = f"127.0.0.1:{self._proxy.server_address[1]}"
        return f"s3://bench/{key}?scheme=http&endpoint_override={endpoint}&region=us-east-1"

    def reset(self) -> None:
        with self._guard:
            self.requests = self.bytes = 0

    def count(self, size: int) -> None:
        with self._guard:
            self.requests += 1
            self.bytes += size


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: CountingStore

    def _forward(self) -> None:
        body = self._body()
        connection = http.client.HTTPConnection("127.0.0.1", self.store._server_port, timeout=120)
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "expect")
        }
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        length = answer.headers.get("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(data)
        self.store.count(len(data))
        connection.close()

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(parts)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
