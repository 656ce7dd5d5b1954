"""Watches Redis past all proxies and writes down what it holds: ends of jobs, open jobs, stolen leases."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from redis import Redis
from redis import asyncio as aioredis
from redis.exceptions import RedisError

from service.chaos import journal
from service.chaos.expected import digest_of_result
from service.chaos.journal import Journal, Opened, Recorded, Rest, Stolen, now
from service.jobs.job import CANCELLED, DONE, ERROR, EXPIRED
from service.jobs.keys import GROUP, Keys

_PERIOD_S = 0.1
_TIMEOUT_S = 2.0
_SAME_MS = 20
_STATES = {
    DONE: journal.DONE,
    ERROR: journal.FAILED,
    CANCELLED: journal.CANCELLED,
    EXPIRED: journal.EXPIRED,
}
_LEFT = ("open", "entries", "pending", "tenant_jobs", "released", "kept")
_FIELDS = ("id", "state", "kind", "error_code", "finished", "result")

# Open jobs; for each running job that is pending for another worker than its owner: id, that worker, the
# owner, when it was delivered last in ms; the ends of jobs since a score of the results, and the last score.
_LOOK = """
local open, results, job = KEYS[1], KEYS[2], KEYS[3]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local foreign = {}
for i = 4, #KEYS do
  local pending = redis.pcall('XPENDING', KEYS[i], ARGV[1], '-', '+', 200)
  for _, p in ipairs(pending.err and {} or pending) do
    local item = redis.call('XRANGE', KEYS[i], p[1], p[1])[1]
    local id = item and item[2][2]
    local f = id and redis.call('HMGET', job .. id, 'state', 'owner') or {}
    if f[1] == 'R' and f[2] ~= p[2] then foreign[#foreign + 1] = {id, p[2], f[2], now - p[3]} end
  end
end
local ends, last = {}, ARGV[2]
local fresh = redis.call('ZRANGEBYSCORE', results, last, '+inf', 'WITHSCORES', 'LIMIT', 0, 300)
for i = 1, #fresh, 2 do
  local f = redis.call('HMGET', job .. fresh[i], 'state', 'kind', 'error_code', 'finished', 'result')
  ends[#ends + 1], last = {fresh[i], f[1], f[2], f[3], f[4], f[5]}, fresh[i + 1]
end
return {redis.call('ZCARD', open), foreign, ends, last}
"""


class Observer:
    """Starts with `start`; never writes to Redis. `revisions` are those of the model, and may become more.

    Ends of jobs come from two places: the notes to the gateways, which they remove soon, and the results,
    which stay unless a later end takes their place.
    """

    def __init__(self, url: str, revisions: Sequence[Keys], journal: Journal) -> None:
        self._redis = aioredis.Redis.from_url(url, protocol=2, socket_timeout=_TIMEOUT_S)
        self._inbox_redis = Redis.from_url(url, protocol=2, socket_timeout=_TIMEOUT_S)
        self._revisions = revisions
        self._journal = journal
        self._inboxes: dict[bytes, bytes] = {}
        # When a job was delivered to a worker that is not its owner: id, worker, owner.
        self._foreign: dict[tuple[str, str, str], int] = {}
        self._last_scores: dict[Keys, bytes] = defaultdict(lambda: b"0")
        self._known: set[tuple[str, str, bytes]] = set()
        self._stopping = threading.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._read_inboxes, name="observer", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._look_often())
        self._thread.start()

    async def stop(self) -> None:
        """End."""
        # A cancellation alone would not do: redis-py swallows one that meets it while it connects.
        self._stopping.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await asyncio.to_thread(self._thread.join)
        await self._redis.aclose()
        self._inbox_redis.close()

    async def _look_often(self) -> None:
        while not self._stopping.is_set():
            with suppress(RedisError, OSError):
                await self._look()
            await asyncio.sleep(_PERIOD_S)

    async def _look(self) -> None:
        # The limit holds for each revision.
        self._journal.write(Opened(now(), max([await self._look_at(keys) for keys in self._revisions])))

    async def _look_at(self, revision: Keys) -> int:
        """Note what has ended or was stolen in a revision; returns its open jobs."""
        async for name in self._redis.scan_iter(match=revision.inbox("*"), count=2000):
            self._inboxes.setdefault(name, b"0-0")
        keys = [revision.open, revision.results, revision.job(""), *revision.queues]
        reply: Any = await self._redis.eval(_LOOK, len(keys), *keys, GROUP, self._last_scores[revision])
        count, foreign, ends, self._last_scores[revision] = reply
        for values in ends:
            self._note(now(), dict(zip(_FIELDS, values, strict=True)))
        for job_id, worker, owner, delivered_ms in foreign:
            self._judge((job_id.decode(), worker.decode(), owner.decode()), int(delivered_ms))
        return int(count)

    def _judge(self, who: tuple[str, str, str], delivered_ms: int) -> None:
        """An entry may stay with a worker that lost its job, but that worker must not renew it."""
        if delivered_ms > self._foreign.setdefault(who, delivered_ms) + _SAME_MS:
            self._journal.write(Stolen(now(), *who))

    def _read_inboxes(self) -> None:
        """In a thread of its own, always blocked in Redis: told of a note before a gateway can remove it."""
        while not self._stopping.is_set():
            streams: Any = dict(self._inboxes)
            try:
                block_ms = int(1000 * _PERIOD_S)
                reply: Any = self._inbox_redis.xread(streams, block=block_ms) if streams else None
            except (RedisError, OSError):
                reply = None
            if not reply:
                self._stopping.wait(0.0 if streams else _PERIOD_S)
                continue
            for name, entries in reply:
                self._inboxes[name] = entries[-1][0]
                for _, fields in entries:
                    note = {key.decode(): value for key, value in fields.items()}
                    self._loop.call_soon_threadsafe(self._note, now(), note)

    def _note(self, t: float, end: Mapping[str, bytes | None]) -> None:
        """Write down one end of a job, once."""
        text = {name: (end.get(name) or b"").decode() for name in ("id", "state", "kind", "error_code")}
        one = (text["id"], text["state"], end.get("finished") or b"")
        if one in self._known or text["state"] not in _STATES:
            return
        self._known.add(one)
        result = end.get("result")
        digest = digest_of_result(text["kind"], result) if result else ""
        state = _STATES[text["state"]]
        self._journal.write(Recorded(t, text["id"], state, text["error_code"], digest))

    async def used_bytes(self) -> int:
        """Memory of Redis."""
        info: Any = await self._redis.info("memory")
        return int(info["used_memory"])

    async def rest(self) -> Rest:
        """What is there now."""
        left = Counter[str]()
        for keys in self._revisions:
            left.update(await self._left(keys))
        return Rest(now(), **{name: left[name] for name in _LEFT}, redis_bytes=await self.used_bytes())

    async def _left(self, keys: Keys) -> dict[str, int]:
        """What is there of one revision."""
        redis = self._redis
        entries = pending = tenant_jobs = 0
        for queue in keys.queues:
            entries += await redis.xlen(queue)
            with suppress(RedisError):
                summary: Any = await redis.xpending(queue, GROUP)
                pending += summary["pending"]
        async for name in redis.scan_iter(match=keys.tenant("*"), count=2000):
            tenant_jobs += await redis.scard(name)
        released = await redis.zcard(next(key for key in keys.shared if key.endswith(":released")))
        kept = await redis.zcard(keys.results)
        values = (await redis.zcard(keys.open), entries, pending, tenant_jobs, released, kept)
        return dict(zip(_LEFT, values, strict=True))
