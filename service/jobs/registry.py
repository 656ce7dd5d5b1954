"""Which revisions of a model exist: workers enter what they have loaded, gateways read it.

The manifest travels along, so that a gateway can serve the jobs of a revision whose files it never saw.
"""

from collections.abc import Collection
from typing import Any

from redis import Redis

from service.jobs.keys import Keys, manifests_of, revisions_of
from service.jobs.redis_link import AsyncLink


def register(redis: Redis, name: str, revision: str, manifest: str) -> None:
    """Enter a revision that a worker has just loaded as the newest. Raises RedisError, OSError."""
    seconds, microseconds = redis.time()
    with redis.pipeline() as pipe:
        pipe.hset(manifests_of(name), revision, manifest)
        pipe.zadd(revisions_of(name), {revision: seconds * 1_000_000 + microseconds})
        pipe.execute()


def is_registered(redis: Redis, name: str, revision: str) -> bool:
    """Whether the entry is still there. Raises RedisError, OSError."""
    return redis.zscore(revisions_of(name), revision) is not None


def newest(redis: Redis, name: str) -> str | None:
    """The revision that was loaded last. Raises RedisError, OSError."""
    found: Any = redis.zrange(revisions_of(name), -1, -1)
    return str(found[0].decode()) if found else None


def others(redis: Redis, name: str, own: Collection[str]) -> list[str]:
    """The revisions beside `own`. Raises RedisError, OSError."""
    found: Any = redis.zrange(revisions_of(name), 0, -1)
    return [text for revision in found if (text := revision.decode()) not in own]


def manifest_of(redis: Redis, name: str, revision: str) -> str | None:
    """The text of a revision's `bundle.json`; None for an unknown one. Raises RedisError, OSError."""
    text: Any = redis.hget(manifests_of(name), revision)
    return str(text.decode()) if text is not None else None


def is_deserted(redis: Redis, keys: Keys) -> bool:
    """Whether a revision has open jobs and no worker, not even a leaving one. Raises RedisError, OSError."""
    with redis.pipeline() as pipe:
        pipe.time()
        pipe.zcard(keys.open)
        for living in (keys.workers, keys.leaving):
            pipe.zrange(living, -1, -1, withscores=True)
        (seconds, microseconds), open_jobs, *latest = pipe.execute()
    now_ms = seconds * 1000 + microseconds // 1000
    return bool(open_jobs) and all(until_ms <= now_ms for one in latest for _, until_ms in one)


class Registry:
    """The registry as a gateway reads it. Trouble with Redis is raised as Unavailable."""

    def __init__(self, url: str) -> None:
        self._link = AsyncLink(url, ())

    async def revisions(self, name: str) -> tuple[dict[str, int], int]:
        """The revisions of a model, the newest first, with the Unix times of their last loading.

        With the number of a turn that follows from them: who has a higher one has seen the same or more.
        """
        (seconds, microseconds), found = await self._link.call(lambda: self._revisions(name))
        loaded_s = {revision.decode(): int(score / 1e6) for revision, score in found}
        return loaded_s, seconds * 1_000_000 + microseconds

    async def _revisions(self, name: str) -> Any:
        async with self._link.redis.pipeline() as pipe:
            pipe.time()
            pipe.zrange(revisions_of(name), 0, -1, desc=True, withscores=True)
            return await pipe.execute()

    async def manifest(self, name: str, revision: str) -> str | None:
        """The text of a revision's `bundle.json`; None for one that is not registered."""
        text: Any = await self._link.call(lambda: self._link.redis.hget(manifests_of(name), revision))
        return str(text.decode()) if text is not None else None

    async def keep(self, name: str, revision: str, manifest: str) -> None:
        """Enter a former revision whose jobs are not over as the oldest, unless it is there."""
        await self._link.call(lambda: self._keep(name, revision, manifest))

    async def _keep(self, name: str, revision: str, manifest: str) -> None:
        async with self._link.redis.pipeline() as pipe:
            pipe.hsetnx(manifests_of(name), revision, manifest)
            pipe.zadd(revisions_of(name), {revision: 0}, nx=True)
            await pipe.execute()

    async def remove(self, name: str, revision: str) -> None:
        """Forget a revision."""
        await self._link.call(lambda: self._remove(name, revision))

    async def _remove(self, name: str, revision: str) -> None:
        # In one step: a worker that enters it again meanwhile must not be left without the manifest.
        async with self._link.redis.pipeline() as pipe:
            pipe.zrem(revisions_of(name), revision)
            pipe.hdel(manifests_of(name), revision)
            await pipe.execute()

    async def close(self) -> None:
        """Drop the connections."""
        await self._link.close()
