"""A small HTTP/1.1 client on asyncio streams that keeps connections and can be rude on purpose."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 15.0
_IDLE_CONNECTIONS = 64


class Broken(Exception):
    """The connection broke or the answer did not come: nobody knows what became of the request."""


@dataclass(frozen=True)
class Reply:
    """Status, headers in lower case, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON; Broken when it is none."""
        try:
            return json.loads(self.body)
        except ValueError as exc:
            raise Broken(f"status {self.status} came with {self.body[:60]!r}") from exc


class Connection:
    """One connection; one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes, *, piece: int = 0, pause_s: float = 0.0) -> None:
        """Send `data`, in pieces of so many bytes with pauses if `piece` is given."""
        step = piece or len(data) or 1
        for start in range(0, len(data), step):
            self.writer.write(data[start : start + step])
            await self.writer.drain()
            await asyncio.sleep(pause_s)

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the answer."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.split(":", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), {name.lower(): value.strip() for name, value in pairs}

    async def chunks(self, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
        """The parts of the body."""
        if headers.get("transfer-encoding") != "chunked":
            yield await self.reader.readexactly(int(headers["content-length"]))
            return
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readuntil(b"\r\n")

    def close(self) -> None:
        """Cut it off."""
        self.writer.transport.abort()


class HttpClient:
    """Requests to one gateway."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Connection] = []

    async def connect(self) -> Connection:
        """A fresh connection. Raises OSError."""
        return Connection(*await asyncio.open_connection("127.0.0.1", self._port))

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        on_chunk: Callable[[bytes], None] | None = None,
        slowly: str = "",
    ) -> Reply:
        """One request and its whole answer. `slowly`: `head`, `body` or `read` is done in small pieces.

        Raises Broken.
        """
        connection = None
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._take()
                await self._send(connection, message(method, path, body, headers), slowly)
                status, got = await connection.head()
                if slowly == "read":
                    await asyncio.sleep(0.5)
                parts = []
                async for part in connection.chunks(got):
                    parts.append(part)
                    if on_chunk is not None:
                        on_chunk(part)
        except (OSError, EOFError, ValueError, IndexError, KeyError, TimeoutError) as exc:
            if connection is not None:
                connection.close()
            raise Broken(f"{type(exc).__name__}: {exc}") from exc
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        self._give_back(connection, got)
        return Reply(status, got, b"".join(parts))

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.reader.at_eof() and not connection.writer.is_closing():
                return connection
            connection.close()
        return await self.connect()

    async def _send(self, connection: Connection, data: bytes, slowly: str) -> None:
        split = data.index(b"\r\n\r\n") + 4
        for name, part in (("head", data[:split]), ("body", data[split:])):
            slow = slowly == name
            await connection.send(part, piece=max(1, len(part) // 10) if slow else 0, pause_s=0.1 * slow)

    def _give_back(self, connection: Connection, headers: Mapping[str, str]) -> None:
        if headers.get("connection") == "close" or len(self._idle) >= _IDLE_CONNECTIONS:
            connection.close()
        else:
            self._idle.append(connection)

    def close(self) -> None:
        """Cut off what is idle."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()


def message(method: str, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """A request as it goes over the wire."""
    lines = {"Host": "127.0.0.1", "Content-Length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body
