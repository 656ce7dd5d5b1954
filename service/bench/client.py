"""The client of all benchmarks: keep-alive connections in one event loop, each with one request at a time.

Requests are bytes made once and answers are framed in C, so that client and server can share two cores and
nearly all of the time is the server's.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, TypeVar, cast

import httptools

from service.errors import Unavailable

T = TypeVar("T")

HOST = "127.0.0.1"
REPLY_TIMEOUT_S = 60.0
_LONGEST_S = 0.1  # for a request among many


@dataclass(frozen=True)
class Target:
    """Where a job is posted to, and its JSON body."""

    port: int
    path: str
    body: Mapping[str, object]

    def request(self) -> bytes:
        """The whole request."""
        content = json.dumps(dict(self.body)).encode()
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: {HOST}:{self.port}\r\nAccept: application/json\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content


@dataclass
class Sample:
    """Latencies in seconds of the requests that ended within `seconds` of wall time."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)

    def add(self, other: Sample) -> None:
        """Take in the requests of another round."""
        self.seconds += other.seconds
        self.latencies += other.latencies

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.latencies) / self.seconds

    def quantile_ms(self, share: float) -> float:
        """The latency in ms that `share` of the requests stayed within."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3


class Connection(asyncio.Protocol):
    """One connection; `post` returns the answer's status and body."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._reply: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None

    async def post(self, request: bytes) -> tuple[int, bytes]:
        """Send a request and wait for its answer. Raises Unavailable when the connection breaks."""
        assert self._transport is not None
        if self._transport.is_closing():
            raise Unavailable("the server closed the connection")
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._reply

    @property
    def usable(self) -> bool:
        """Whether it is open; a server closes what has been idle for a while."""
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The server took the connection."""
        # uvloop's transports are no subclasses.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """A part of an answer."""
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server is gone."""
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(Unavailable("the server closed the connection"))

    def on_body(self, body: bytes) -> None:
        """A part of an answer's body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """The answer is complete."""
        assert self._reply is not None
        status, body = self._parser.get_status_code(), b"".join(self._body)
        self._body.clear()
        if not self._reply.done():
            self._reply.set_result((status, body))


async def connect(port: int) -> Connection:
    """A new connection."""
    _, connection = await asyncio.get_running_loop().create_connection(Connection, HOST, port)
    return connection


@asynccontextmanager
async def connections(port: int, count: int) -> AsyncIterator[list[Connection]]:
    """New connections, closed afterwards."""
    opened: list[Connection] = []
    try:
        for _ in range(count):
            opened.append(await connect(port))
        yield opened
    finally:
        for connection in opened:
            connection.close()


def answer_of(target: Target) -> bytes:
    """The body of one answer. Raises Unavailable for any error."""
    return run(_answer_of(target))


async def _answer_of(target: Target) -> bytes:
    async with connections(target.port, 1) as (connection,):
        return checked(*await connection.post(target.request()))


def checked(status: int, body: bytes) -> bytes:
    """The body of an answer. Raises Unavailable unless it is 200 or 202."""
    if status not in (200, 202):
        raise Unavailable(f"the server answered {status}: {body[:300].decode(errors='replace')}")
    return body


def closed_loop(target: Target, *, clients: int, seconds: float) -> Sample:
    """`clients` connections post to `target` without a pause. Raises Unavailable for any error."""
    until = time.perf_counter() + seconds
    return run(_closed_loop([target], clients, lambda: time.perf_counter() < until), seconds)


def post_all(targets: Sequence[Target], *, clients: int, requests: int) -> Sample:
    """`requests` of `targets`, which share a port, in turns, by `clients` connections without a pause."""
    left = iter(range(requests))
    return run(_closed_loop(targets, clients, lambda: next(left, None) is not None), requests * _LONGEST_S)


async def _closed_loop(targets: Sequence[Target], clients: int, more: Callable[[], bool]) -> Sample:
    requests = cycle([target.request() for target in targets])
    async with connections(targets[0].port, clients) as opened:
        began = time.perf_counter()
        parts = await asyncio.gather(*(_repeat(one, requests, more) for one in opened))
        return Sample(time.perf_counter() - began, [latency for part in parts for latency in part])


async def _repeat(connection: Connection, requests: Iterator[bytes], more: Callable[[], bool]) -> list[float]:
    latencies = []
    while more():
        began = time.perf_counter()
        checked(*await connection.post(next(requests)))
        latencies.append(time.perf_counter() - began)
    return latencies


def run(work: Coroutine[Any, Any, T], seconds: float = 0.0) -> T:
    """Run `work`, expected to take `seconds`, on the fastest event loop there is.

    Raises Unavailable when it takes REPLY_TIMEOUT_S longer.
    """

    async def bounded() -> T:
        async with asyncio.timeout(seconds + REPLY_TIMEOUT_S):
            return await work

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            return runner.run(bounded())
        except TimeoutError as exc:
            raise Unavailable(f"the server did not answer within {REPLY_TIMEOUT_S:.0f} s") from exc


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
