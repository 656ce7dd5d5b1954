"""Uvicorn with the limits that it lacks: headers, slow readers, number of connections, an orderly drain."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from pydantic_core import to_json
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.errors import Unavailable
from service.gateway.gathering import Gathering
from service.gateway.middleware import SECURITY_HEADERS, new_request_id
from service.gateway.responses import error_body
from service.settings import Settings

MAX_HEADER_BYTES = 16 * 1024
_LINGER_S = 1.0
# A client that reads slower than 64 KiB in 30 s is cut off: its answer would fill memory for hours.
_READ_S = 30.0
_READ_BYTES = 64 * 1024
# Files of the process beside its connections: pipes, Redis, assets.
_OTHER_FILES = 256
_BACKLOG = 1024
_SAME_SIGNAL_S = 1.0
# Longer than the minute for which load balancers keep a connection: none sends on one that is just closed.
_KEEP_ALIVE_S = 75


class GatewayConfig(uvicorn.Config):
    """Uvicorn's configuration with the time that a client has for its headers, and the connections allowed.

    `idle`: the connections without a request under way; the one that is idle longest comes first.
    """

    def __init__(self, app: ASGIApp, header_timeout_s: float, max_connections: int) -> None:
        super().__init__(
            app,
            http=LimitedProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=1,
        )
        self.header_timeout_s = header_timeout_s
        self.max_connections = max_connections
        self.idle: dict[LimitedProtocol, None] = {}


class LimitedProtocol(HttpToolsProtocol):
    """One connection. Headers: 16 KiB, else 431, in time, else 408. A client that hardly reads is cut off."""

    config: GatewayConfig
    _in_head = False
    _head_bytes = 0
    _refused = False
    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _buffered = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room among the connections, start the clock for the first request."""
        super().connection_made(Gathering(transport, self.loop))  # type: ignore[arg-type]
        if len(self.connections) > self.config.max_connections and not self._close_an_idle_one():
            limit = f"{self.config.max_connections:,} requests are under way, no more are allowed"
            self._refuse(503, "unavailable", limit)
            self.transport.close()
            return
        self.config.idle[self] = None
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        self.config.idle.pop(self, None)
        self._stop_clock()
        self._stop_stall_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless the connection is given up."""
        if self._refused:
            return
        idle = self.cycle is None or self.cycle.response_complete
        # Also while the rest of an answered request's body trickles in.
        if idle and self._head_timer is None:
            self._start_clock()
        # Where a head begins behind another request, in the same data, counting starts with the next data.
        counted = idle or self._in_head
        super().data_received(data)
        # One endless header reaches none of the parser's callbacks.
        if self._in_head and counted:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEADER_BYTES:
                self._refuse_head()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        """The headers are there: check their size, start the application."""
        if self._refused:
            return
        self._in_head = False
        self._head_bytes = 0
        self._stop_clock()
        self.config.idle.pop(self, None)
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEADER_BYTES:
            self._refuse_head()
        elif not self._names_one_host():
            self._refuse(400, "bad_request", "the request needs one header Host")
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        if not self._refused:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is written: the connection may be closed for another one's sake."""
        super().on_response_complete()
        pipelined = self.cycle is not None and not self.cycle.response_complete
        if not pipelined and not self.transport.is_closing():
            self.config.idle[self] = None

    def _close_an_idle_one(self) -> bool:
        """Close the connection that is idle longest, most likely an attacker's; False when there is none."""
        longest = next(iter(self.config.idle), None)
        if longest is None:
            return False
        del self.config.idle[longest]
        longest.transport.close()
        return True

    def send_400_response(self, msg: str) -> None:
        """What the parser cannot read."""
        self._refuse(400, "bad_request", "this is no HTTP request that can be read")

    def pause_writing(self) -> None:
        """The client reads slower than the answer is written."""
        super().pause_writing()
        self._buffered = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(_READ_S, self._check_reader)

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        self._stop_stall_timer()

    def _check_reader(self) -> None:
        size = self.transport.get_write_buffer_size()
        if size > self._buffered - _READ_BYTES:
            self.transport.abort()
            return
        self._buffered = size
        self._stall_timer = self.loop.call_later(_READ_S, self._check_reader)

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _start_clock(self) -> None:
        self._head_timer = self.loop.call_later(self.config.header_timeout_s, self._too_slow)

    def _stop_clock(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if self._in_head:
            limit = f"{self.config.header_timeout_s:g} s"
            self._refuse(408, "request_timeout", f"the headers did not come in full; {limit} are allowed")
        else:
            self.transport.close()

    def _names_one_host(self) -> bool:
        """Whether there is one Host, which HTTP/1.0 may leave out."""
        hosts = sum(name == b"host" for name, _ in self.headers)
        return hosts == 1 or (hosts == 0 and self.parser.get_http_version() == "1.0")

    def _refuse_head(self) -> None:
        message = f"the headers have more than the {MAX_HEADER_BYTES:,} bytes allowed"
        self._refuse(431, "headers_too_large", message)

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer before there is an application to do so, then close."""
        self._refused = True
        self._stop_clock()
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            # An answer to an earlier request is under way; a second one inside it would be garbage.
            self.transport.close()
            return
        self.transport.write(_raw_error(status, code, message))
        # What still arrives is dropped for a while: closing at once would reset the connection.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.close)


def _raw_error(status: int, code: str, message: str) -> bytes:
    request_id = new_request_id()
    body = to_json(error_body(code, message, request_id))
    headers = (
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *([(b"retry-after", b"2")] if status == 503 else []),
        (b"x-request-id", request_id.encode()),
        *SECURITY_HEADERS,
    )
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    return STATUS_LINE[status] + lines + b"\r\n" + body


class GatewayServer(uvicorn.Server):
    """A server that first says that it is leaving and goes when the last running request has ended.

    The first SIGTERM or SIGINT calls `on_drain`; it goes on listening until no request runs, at most
    `drain_s`. A second signal ends it at once, unless it comes within a second: whoever ends a group of
    processes sends some of them the same signal twice.
    """

    def __init__(self, config: GatewayConfig, drain_s: float, on_drain: Callable[[], None]) -> None:
        super().__init__(config)
        self._drain_s = drain_s
        self._on_drain = on_drain
        self._draining_since: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came. It is not raised again at the end: a drained server has ended well."""
        if self._draining_since is None:
            self._draining_since = time.monotonic()
            self._on_drain()
        elif time.monotonic() - self._draining_since > _SAME_SIGNAL_S:
            self.should_exit = self.force_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the connections, then the application: in order too when nothing is waited for."""
        await super().shutdown(sockets)
        if self.force_exit:
            for task in list(self.server_state.tasks):
                task.cancel()
            await self.lifespan.shutdown()

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to end; called each 100 ms."""
        if self._draining_since is not None:
            late = time.monotonic() - self._draining_since > self._drain_s
            self.should_exit = self.should_exit or late or not self.server_state.tasks
        return await super().on_tick(counter)


def make_server(app: ASGIApp, settings: Settings, on_drain: Callable[[], None]) -> GatewayServer:
    """The server of `app`, to be run with a socket of `listen`."""
    config = GatewayConfig(app, settings.header_timeout_s, settings.max_connections)
    return GatewayServer(config, settings.drain_s, on_drain)


def allow_files(count: int) -> None:
    """Raise this process's own limit of open files to `count`, as far as the system lets it."""
    count += _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 lets the system choose. Raises Unavailable that names the address."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
    except OSError as exc:
        raise Unavailable(f"cannot listen on {host}:{port}: {exc.strerror}") from exc
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as exc:
        listener.close()
        raise Unavailable(f"cannot listen on {host}:{port}: {exc.strerror}") from exc
    return listener
