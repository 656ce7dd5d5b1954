"""A TCP proxy that misbehaves on demand: late, silent, rude, or forgetful of replies."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Dial = Callable[[], Awaitable[Streams]]
_CHUNK = 1 << 16


class Mode(Enum):
    """How the proxy treats what it carries."""

    CLEAN = "clean"
    LATENCY = "latency"
    """Every piece comes late."""
    HALF_OPEN = "half-open"
    """Connections are accepted and never answered; those that fell silent stay so for good."""
    RESET = "reset"
    """Connections are reset, new ones at once."""
    LOST_REPLY = "lost-reply"
    """Requests are forwarded; the reply is dropped and the connection with it."""


@dataclass(eq=False)
class _Link:
    near: asyncio.StreamWriter
    far: asyncio.StreamWriter | None = None
    silent: bool = False

    def close(self, *, reset: bool) -> None:
        for writer in (self.near, self.far):
            if writer is None:
                continue
            if reset:
                _reset_on_close(writer)
            writer.transport.abort()


class Proxy:
    """Listens on a free loopback port and carries each connection to `dial()`."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._mode = Mode.CLEAN
        self._delay_s = 0.0
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Begin to listen; `port` says where."""
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def turn(self, mode: Mode, delay_s: float = 0.0) -> None:
        """Behave like `mode` from now on; `delay_s` is that of LATENCY."""
        self._mode, self._delay_s = mode, delay_s
        if mode is Mode.RESET:
            self.cut()

    def cut(self) -> None:
        """Reset every connection."""
        for link in list(self._links):
            link.close(reset=True)

    async def stop(self) -> None:
        """Cut everything off and listen no more."""
        if self._server is not None:
            self._server.close()
        self.cut()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer)
        self._links.add(link)
        try:
            if self._mode is Mode.RESET:
                _reset_on_close(writer)
                return
            if self._mode is Mode.HALF_OPEN:
                link.silent = True
                await self._pump(link, reader, writer, replies=False)
                return
            far_reader, link.far = await self._dial()
            pumps = [
                asyncio.create_task(self._pump(link, reader, link.far, replies=False)),
                asyncio.create_task(self._pump(link, far_reader, writer, replies=True)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            # The end of one connection is nobody's error.
            pass
        finally:
            link.close(reset=False)
            self._links.discard(link)

    async def _pump(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self._mode is Mode.HALF_OPEN:
                    link.silent = True
                if link.silent:
                    continue
                if self._mode is Mode.LOST_REPLY and replies:
                    return
                if self._mode is Mode.LATENCY:
                    await asyncio.sleep(self._delay_s)
                writer.write(data)
                await writer.drain()


def _reset_on_close(writer: asyncio.StreamWriter) -> None:
    """Closing sends RST instead of FIN."""
    own: socket.socket | None = writer.get_extra_info("socket")
    if own is not None and own.family == socket.AF_INET:
        with suppress(OSError):
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
