"""A real S3 server on loopback, behind a proxy that can be told to falter."""

from __future__ import annotations

import http.client
import logging
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BUCKET = "bucket"


@dataclass
class Fault:
    """What the proxy does wrong.

    `kind` is ``"503"``, ``"403"``, ``"stall"`` (no answer until they are released) or ``"cut"`` (the answer
    ends in the middle); `method` and `part` (of the path) choose the requests; `times` how many of them.
    """

    kind: str
    method: str = "GET"
    part: str = ""
    times: int = 10**9


class FaultyServer(ThreadingHTTPServer):
    """Forwards requests to an S3 server on another port, but for those that a fault takes."""

    daemon_threads = True

    def __init__(self, port: int):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port = port
        self.faults: list[Fault] = []
        self.log: list[tuple[float, str, str]] = []  # time, method, path
        self.delay = 0.0  # seconds before each answer to a GET
        self.released = threading.Event()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def release(self) -> None:
        """Let the requests go that are stalled now."""
        released, self.released = self.released, threading.Event()
        released.set()

    def take_fault(self, method: str, path: str) -> str | None:
        with self._lock:
            self.log.append((time.time(), method, path))
            for fault in self.faults:
                if fault.times and fault.method == method and fault.part in path:
                    fault.times -= 1
                    return fault.kind
        return None

    def handle_error(self, request, client_address):  # a client that has gone is no news
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _forward(self) -> None:
        server = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = server.take_fault(self.command, self.path)
        if fault == "stall":
            server.released.wait()
            self.close_connection = True
            return
        if fault in ("503", "403"):
            code = {"503": "SlowDown", "403": "AccessDenied"}[fault]
            self._answer(int(fault), {}, f"<Error><Code>{code}</Code></Error>".encode())
            return
        if self.command == "GET":
            time.sleep(server.delay)
        upstream = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        if fault == "cut":
            self._answer(answer.status, dict(answer.getheaders()), data, data[: len(data) // 2])
            self.close_connection = True
            self.connection.close()
            return
        self._answer(answer.status, dict(answer.getheaders()), data)

    def _answer(self, status: int, headers: dict[str, str], data: bytes, sent: bytes | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data if sent is None else sent)
            self.wfile.flush()

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _forward

    def log_message(self, *_):
        pass


@contextmanager
def s3_server() -> Callable[[], FaultyServer]:
    """A `FaultyServer` before a new, empty S3 server with one bucket."""
    import boto3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    _, port = moto.get_host_and_port()
    # All servers of a process share what is in them.
    urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/reset", data=b"", timeout=60).close()
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys).create_bucket(Bucket=BUCKET)
    proxy = FaultyServer(port)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.release()
        proxy.shutdown()
        proxy.server_close()
        moto.stop()


def options(server: FaultyServer) -> dict:
    """`storage_options` for the server."""
    return {
        "key": "key",
        "secret": "secret",
        "client_kwargs": {"endpoint_url": server.url, "region_name": "us-east-1"},
    }


@contextmanager
def closed_port():
    """A port of this machine at which nobody listens, and nobody will meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
