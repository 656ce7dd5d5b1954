"""The redis-server of a chaos run: killed, emptied, cut short, out of disk, and started again."""

from __future__ import annotations

import asyncio
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from redis import asyncio as aioredis
from redis.exceptions import RedisError

from service.chaos.journal import Journal, Loss, now
from service.chaos.process import Supervised, clean_environment, eventually
from service.chaos.proxy import Streams
from service.chaos.slow_disk import SlowDisk
from service.jobs.redis_server import SAFE_SETTINGS, find_executable

_READY_S = 30.0
_ROOM_BYTES = 2048
"""What a full disk still takes."""


class RedisNode:
    """A supervised redis-server on a unix socket in `folder`."""

    def __init__(self, folder: Path, journal: Journal, *, fsync: str = "always") -> None:
        self._data = folder / "redis"
        # The path of a unix socket may have some 100 bytes only.
        self._socket = Path(tempfile.mkdtemp(prefix="maskbit-")) / "redis.sock"
        self._journal = journal
        self.disk = SlowDisk(folder)
        self.disk.slow(0)
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "dir": str(self._data),
            "save": "",
            "loglevel": "notice",
            **SAFE_SETTINGS,
            "appendfsync": fsync,
        }
        command = [find_executable(), *(part for key, text in options.items() for part in (f"--{key}", text))]
        self.process = Supervised(
            "redis",
            command,
            {**clean_environment(), **self.disk.environment},
            folder / "redis.log",
            journal,
            prepare=self._prepare,
        )

    @property
    def url(self) -> str:
        """Past all proxies."""
        return f"unix://{self._socket}"

    async def dial(self) -> Streams:
        """A raw connection."""
        return await asyncio.open_unix_connection(str(self._socket))

    async def stop(self) -> None:
        """End it for good."""
        await self.process.stop()
        shutil.rmtree(self._socket.parent, ignore_errors=True)

    async def _prepare(self) -> None:
        self._data.mkdir(exist_ok=True)
        self._socket.unlink(missing_ok=True)

    async def ready(self) -> None:
        """Wait until it answers. Raises TimeoutError."""
        await eventually(self._answers, _READY_S)

    async def _answers(self) -> bool:
        with suppress(RedisError, OSError):
            async with aioredis.Redis.from_url(self.url, socket_timeout=2.0) as redis:
                await redis.ping()
                return True
        return False

    async def kill(self) -> None:
        """kill -9, and wait until it is back."""
        life = self.process.starts
        self.process.send(signal.SIGKILL)
        await self._back(life)

    async def terminate(self) -> None:
        """SIGTERM, and wait until it is back."""
        life = self.process.starts
        self.process.send(signal.SIGTERM)
        await self._back(life)

    async def _back(self, life: int) -> None:
        await self.process.gone(life, _READY_S)
        await self.ready()

    async def wipe(self) -> None:
        """kill -9, and come back empty."""
        await self._lose(lambda: shutil.rmtree(self._data), wiped=True)

    async def truncate(self, cut: int) -> None:
        """kill -9, and come back without the last `cut` bytes of the append-only file."""
        await self._lose(lambda: _truncate(self._append_only_file(), cut), wiped=False)
        # Redis leaves half a transaction in the file, which its next start would run with what came after.
        async with aioredis.Redis.from_url(self.url) as redis:
            await redis.bgrewriteaof()

    async def _lose(self, damage: Callable[[], object], *, wiped: bool) -> None:
        self.process.hold()
        killed = now()
        life = self.process.starts
        try:
            self.process.send(signal.SIGKILL)
            await self.process.gone(life, _READY_S)
            damage()
        finally:
            self.process.resume()
        await self.ready()
        self._journal.write(Loss(killed, now(), wiped))

    async def fill_disk(self, timeout_s: float) -> None:
        """Let the append-only file grow no further: Redis ends, and comes back to a disk with room."""
        life = self.process.starts
        room = self._append_only_file().stat().st_size + _ROOM_BYTES
        if self.process.pid:
            hard = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (room, hard))
        if not await self.process.gone(life, timeout_s):
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        await self.ready()

    def _append_only_file(self) -> Path:
        """The file that grows: one of several in a folder since Redis 7."""
        files = sorted(self._data.glob("appendonlydir/*.incr.aof"), key=lambda file: file.stat().st_mtime)
        return files[-1] if files else self._data / "appendonly.aof"


def _truncate(file: Path, cut: int) -> None:
    with file.open("r+b") as stream:
        stream.truncate(max(0, file.stat().st_size - cut))
