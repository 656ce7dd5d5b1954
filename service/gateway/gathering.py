"""A transport that sends head and body of an answer together."""

from __future__ import annotations

import asyncio
from typing import Any


class Gathering:
    """Sends what is written in one turn of the loop with one system call; all else is the inner transport's.

    A short head on its own would wake the client for nothing.
    """

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, data: bytes) -> None:
        """Send `data` soon, after what was written before."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def write_eof(self) -> None:
        """Send the rest, then the end."""
        self._flush()
        self._inner.write_eof()

    def close(self) -> None:
        """Send the rest, then close."""
        self._flush()
        self._inner.close()

    def get_write_buffer_size(self) -> int:
        """Bytes that the system has not taken yet."""
        return self._inner.get_write_buffer_size() + sum(map(len, self._parts))

    def _flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._inner.is_closing():
            self._inner.writelines(parts)
