"""What a hostile client does, as a process of its own: `python -m service.bench.attacker NAME PORT`.

It goes on until its standard input ends. All attacks are paced: they are to use up the server's patience, not
the processor that both share.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

HOST = "127.0.0.1"
_HEAD = b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
_AGAIN_S = 0.2
_CHUNK = b"10000\r\n" + bytes(0x10000) + b"\r\n"
_BIG_ANSWER = json.dumps({"class_id": 0, "n": 16, "steps": 1, "format": "npy"}).encode()

Session = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Attack:
    """`sessions` connections at a time, each opened again when it ends; `receive_bytes` of socket buffer."""

    about: str
    sessions: int
    session: Session
    receive_bytes: int | None = None


async def _slow_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    while not reader.at_eof():
        writer.write(b"X-More: a\r\n")
        await writer.drain()
        await _until_end(reader, 1.0)


async def _stalled_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(_HEAD + b'Content-Length: 1000\r\n\r\n{"class_id"')
    await _until_end(reader)


async def _silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _until_end(reader)


async def _huge_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Big: " + bytes([98]) * 20_000 + b"\r\n\r\n")
    await _until_end(reader)


async def _endless_chunks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(_HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    while not reader.at_eof():
        writer.write(_CHUNK)
        await writer.drain()
        await _until_end(reader, 0.02)


async def _slow_reading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(_HEAD + b"Content-Length: %d\r\n\r\n" % len(_BIG_ANSWER) + _BIG_ANSWER)
    while await reader.read(500):
        await asyncio.sleep(1.0)


ATTACKS = {
    "slow-headers": Attack("500 connections with a header line a second", 500, _slow_headers),
    "stalled-bodies": Attack("500 bodies that stop after ten bytes", 500, _stalled_body),
    "idle-sockets": Attack("500 connections without a byte", 500, _silence),
    "huge-headers": Attack("20 kB of headers, 25 connections again and again", 25, _huge_headers),
    "chunked-floods": Attack("10 endless chunked bodies, 3 MB/s each", 10, _endless_chunks),
    "slow-readers": Attack("25 readers of 4 MB at 500 bytes a second", 25, _slow_reading, 4096),
}


async def _until_end(reader: asyncio.StreamReader, timeout_s: float | None = None) -> None:
    """Return when the server ends the connection, or after `timeout_s`; what it says is not listened to."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while await reader.read(65536):
                pass


async def _repeat(attack: Attack, port: int, delay_s: float) -> None:
    await asyncio.sleep(delay_s)
    while True:
        with suppress(OSError):
            link = socket.socket()
            if attack.receive_bytes:
                link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, attack.receive_bytes)
            link.setblocking(False)
            await asyncio.get_running_loop().sock_connect(link, (HOST, port))
            reader, writer = await asyncio.open_connection(sock=link, limit=1024)
            try:
                await attack.session(reader, writer)
            finally:
                writer.close()
        await asyncio.sleep(_AGAIN_S)


async def attack(name: str, port: int) -> None:
    """Attack the server at `port` until standard input ends."""
    chosen = ATTACKS[name]
    # Spread over a second, so that they stay so when each comes again and again.
    delays = (index / chosen.sessions for index in range(chosen.sessions))
    sessions = [asyncio.create_task(_repeat(chosen, port, delay_s)) for delay_s in delays]
    await asyncio.to_thread(sys.stdin.buffer.read)
    for one in sessions:
        one.cancel()
    await asyncio.gather(*sessions, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(attack(sys.argv[1], int(sys.argv[2])))
