"""A worker's own small HTTP server: `/metrics` for Prometheus, the probes for whoever runs it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from service.telemetry import CONTENT_TYPE, WorkerMetrics

_JSON = "application/json"
_IDLE_S = 5.0  # a connection that says nothing for so long is closed
_MOST = 32  # connections at a time; for one more the oldest is closed

Reply = tuple[HTTPStatus, str, bytes]
Readiness = Mapping[str, Any]
"""JSON values; `ready` is a bool, and without it `reason` is one line that says why."""


class Probes:
    """Answers for one worker process, which is not ready before `follow` was called."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._readiness: Callable[[], Readiness] = _loading

    def follow(self, readiness: Callable[[], Readiness]) -> None:
        """Let `readiness` answer from now on; any thread may call it."""
        self._readiness = readiness

    def listen(self, host: str, port: int) -> int:
        """Serve in threads that end with the process; returns the port, a free one for 0. Raises OSError."""
        server = _Server(host, port, self)
        threading.Thread(target=server.serve_forever, name="probes", daemon=True).start()
        return int(server.server_address[1])

    def reply(self, path: str) -> Reply:
        """What a GET of `path` gets."""
        match path.partition("?")[0]:
            case "/metrics":
                return HTTPStatus.OK, CONTENT_TYPE, self._metrics.render()
            case "/livez":
                return _in_json(HTTPStatus.OK, {"alive": True})
            case "/startupz":
                return _told(_loading() if self._readiness is _loading else {"ready": True, "reason": ""})
            case "/readyz":
                return _told(self._readiness())
            case _:
                paths = "allowed are /metrics, /livez, /startupz and /readyz"
                return _in_json(HTTPStatus.NOT_FOUND, {"reason": f"there is no such path; {paths}"})


def _loading() -> Readiness:
    return {"ready": False, "reason": "the weights are not loaded and warm yet"}


def _told(now: Readiness) -> Reply:
    return _in_json(HTTPStatus.OK if now["ready"] else HTTPStatus.SERVICE_UNAVAILABLE, now)


def _in_json(status: HTTPStatus, values: Readiness) -> Reply:
    return status, _JSON, json.dumps(values).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # beyond it clients try to connect again after seconds

    def __init__(self, host: str, port: int, probes: Probes) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.probes = probes
        self._open: dict[socket.socket, None] = {}  # the oldest first
        self._book = threading.Lock()
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread; whoever opens many connections takes few of them, and keeps nobody else out."""
        with self._book:
            self._open[request] = None
            if len(self._open) > _MOST:
                oldest = next(iter(self._open))
                del self._open[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection that was answered, or gave up."""
        with self._book:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves in mid-answer is no trouble of the worker."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _IDLE_S
    server_version, sys_version = "maskbit", ""

    def do_GET(self) -> None:
        """Answer and close."""
        assert isinstance(self.server, _Server)
        status, kind, body = self.server.probes.reply(self.path)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Probes come every few seconds: no line for each."""
