"""Progress of many jobs, followed over one connection however many clients listen."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from service.errors import Unavailable
from service.jobs.redis_link import AsyncLink

_PERIOD_S = 0.05
_BATCH = 32


@dataclass(eq=False)
class _Follower:
    key: str
    last_id: str
    queue: asyncio.Queue[tuple[str, bytes]] = field(default_factory=lambda: asyncio.Queue(4 * _BATCH))


class EventTail:
    """Looks at the event streams that somebody follows every 50 ms, all in one round trip."""

    def __init__(self, link: AsyncLink) -> None:
        self._link = link
        self._followers: set[_Follower] = set()
        self._task: asyncio.Task[None] | None = None

    async def follow(self, key: str, last_id: str) -> AsyncIterator[tuple[str, bytes]]:
        """Yield (id, event) after `last_id`, as long as the caller goes on."""
        follower = _Follower(key, last_id)
        self._followers.add(follower)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll())
        try:
            while True:
                yield await follower.queue.get()
        finally:
            self._followers.discard(follower)

    async def rest(self, key: str, last_id: str) -> list[tuple[str, bytes]]:
        """(id, event) of what is there after `last_id`. Raises Unavailable."""
        redis = self._link.redis
        entries: Any = await self._link.call(lambda: redis.xrange(key, min=f"({last_id}"))
        return [(entry.decode(), fields[b"event"]) for entry, fields in entries]

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _poll(self) -> None:
        while self._followers:
            try:
                await self._read()
            except Unavailable:
                await asyncio.sleep(1.0)
            await asyncio.sleep(_PERIOD_S)

    async def _read(self) -> None:
        # A slow reader is passed over until it has caught up; what the capped stream drops meanwhile is lost.
        ready = [one for one in self._followers if one.queue.qsize() <= 3 * _BATCH]
        replies = await self._link.call(lambda: self._ranges(ready))
        for follower, entries in zip(ready, replies, strict=True):
            for entry, fields in entries:
                follower.last_id = entry.decode()
                follower.queue.put_nowait((follower.last_id, fields[b"event"]))

    async def _ranges(self, followers: list[_Follower]) -> list[Any]:
        async with self._link.redis.pipeline(transaction=False) as pipe:
            for one in followers:
                pipe.xrange(one.key, min=f"({one.last_id}", count=_BATCH)
            return await pipe.execute()
