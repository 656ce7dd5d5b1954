"""Answers that leave with one system call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
import uvloop

from service.gateway.gathering import Gathering

Use = Callable[[Gathering], None]


class Server(asyncio.Protocol):
    """Wraps the transport of its only connection and hands it to `use`."""

    def __init__(self, use: Use) -> None:
        self._use = use

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._use(Gathering(cast(asyncio.Transport, transport), asyncio.get_running_loop()))


class Client(asyncio.Protocol):
    """Keeps what comes, piece by piece; `lost` ends with the connection."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.lost = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def pieces(request: pytest.FixtureRequest) -> Callable[[Use], list[bytes]]:
    """What a client gets until the connection ends; errors that nobody caught fail the test."""

    async def talk(use: Use) -> list[bytes]:
        loop = asyncio.get_running_loop()
        unhandled: list[Any] = []
        loop.set_exception_handler(lambda _, context: unhandled.append(context))
        server = await loop.create_server(lambda: Server(use), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            transport, client = await loop.create_connection(Client, "127.0.0.1", port)
            await asyncio.wait_for(client.lost, 10)
            transport.close()
        assert unhandled == []
        return client.pieces

    def run(use: Use) -> list[bytes]:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(talk(use))

    return run


def test_head_and_body_arrive_together(pieces: Callable[[Use], list[bytes]]) -> None:
    def answer(transport: Gathering) -> None:
        transport.write(b"head")
        transport.write(b"body")
        asyncio.get_running_loop().call_later(0.1, transport.close)

    assert pieces(answer) == [b"headbody"]


@pytest.mark.parametrize("end", ["close", "write_eof"])
def test_what_was_written_arrives_before_the_end(pieces: Callable[[Use], list[bytes]], end: str) -> None:
    def answer(transport: Gathering) -> None:
        for _ in range(100):
            transport.write(bytes(10_000))
        assert transport.get_write_buffer_size() == 1_000_000
        getattr(transport, end)()

    assert sum(map(len, pieces(answer))) == 1_000_000


def test_an_abort_sends_nothing_and_leaves_no_error(pieces: Callable[[Use], list[bytes]]) -> None:
    def answer(transport: Gathering) -> None:
        transport.write(b"never")
        transport.abort()

    assert pieces(answer) == []
