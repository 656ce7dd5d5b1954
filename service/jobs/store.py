"""The gateway's side of the job protocol: submit, wait, look, cancel, follow."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

from service.errors import PayloadTooLarge, Unavailable
from service.jobs.events import EventTail
from service.jobs.intake import conflict
from service.jobs.job import Depth, JobView, NewJob, QueueDepth, QueueLimits
from service.jobs.keys import Keys
from service.jobs.own_jobs import OwnJobs
from service.jobs.redis_link import AsyncLink
from service.jobs.speed import Speed
from service.jobs.views import fetch_view, not_found

_log = logging.getLogger(__name__)

_CHUNK = 500
# Results that are forgotten wait so long for others, to go together.
_FORGET_PAUSE_S = 0.05


class JobStore:
    """One gateway's view of the queue. Trouble with Redis is raised as Unavailable and passes by itself."""

    def __init__(self, url: str, keys: Keys, limits: QueueLimits) -> None:
        self._keys = keys
        self._limits = limits
        self._link = AsyncLink(url, keys.shared)
        self._own = OwnJobs(url, self._link, keys, limits)
        self._tail = EventTail(self._link)
        self._forgotten: list[str] = []
        self._forgetting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to read the inbox and to sweep. Does not need Redis to be there yet."""
        self._own.start()

    async def close(self) -> None:
        """Stop; whoever still waits gets Unavailable. The jobs themselves go on."""
        await self._own.close()
        await self._tail.close()
        await self._link.close()

    async def submit(self, job: NewJob, speed: Speed | None = None) -> str:
        """Queue a job and return its id: the first job's id when the idempotency key is a repeated one.

        `speed` of the workers lets it refuse a job that cannot be done by its deadline, and say when to come
        again. Raises PayloadTooLarge, QueueFull, TenantLimit, DeadlineUnmeetable, IdempotencyConflict, Moved,
        Unavailable.
        """
        if len(job.payload) > self._limits.payload_bytes:
            got, allowed = len(job.payload), self._limits.payload_bytes
            raise PayloadTooLarge(f"the job has {got} bytes, allowed are {allowed}")
        # Whoever submits may be cancelled; the book-keeping still has to follow what Redis decided.
        return await self._link.outlive(self._own.submit(job, speed or Speed()))

    async def wait(self, job_id: str) -> JobView:
        """The job once it is terminal. Raises NotFound, ResultExpired; Unavailable past the deadline."""
        return await self._own.wait(job_id)

    async def get(self, job_id: str, tenant: str) -> JobView:
        """The job now. Raises NotFound (also for another tenant's job), ResultExpired, Unavailable."""
        view = await fetch_view(self._link, job_id, tenant)
        if view.tenant != tenant:
            raise not_found(job_id)
        return view

    async def cancel(self, job_id: str, tenant: str) -> bool:
        """Cancel a job; False when it was terminal already. Raises NotFound, Unavailable."""
        reply: int = await self._link.run("cancel", job_id, tenant)
        if reply < 0:
            raise not_found(job_id)
        return reply == 1

    def forget(self, job_id: str) -> asyncio.Task[None]:
        """Drop a terminal job whose client has its result; not one to be kept or with an idempotency key.

        It is done soon, together with others, and at the end of the task, which nobody needs to wait for.
        """
        self._forgotten.append(job_id)
        if self._forgetting is None or self._forgetting.done():
            self._forgetting = self._link.spawn(self._forget_all())
        return self._forgetting

    async def _forget_all(self) -> None:
        while self._forgotten:
            await asyncio.sleep(_FORGET_PAUSE_S)
            ids, self._forgotten = self._forgotten[:_CHUNK], self._forgotten[_CHUNK:]
            try:
                await self._link.run("forget", *ids)
            except Unavailable as error:
                _log.info("%d results stay until their time is over: %s", len(ids), error)

    async def first(self, tenant: str, key: str, fingerprint: str) -> str | None:
        """The id of the job that an idempotency key led to. Raises IdempotencyConflict, Unavailable."""
        reply = await self._link.run("first", self._keys.idempotency(tenant, key))
        if not reply:
            return None
        if reply[1].decode() != fingerprint:
            raise conflict(key)
        return str(reply[0].decode())

    async def open_door(self, turn: int) -> bool:
        """Let new jobs in; False when a turn with a higher number was here, which then holds."""
        return bool(await self._link.run("door", 1, turn))

    async def close_door(self, turn: int) -> bool:
        """Refuse new jobs, here and in every other gateway, as Moved; False as for `open_door`."""
        return bool(await self._link.run("door", 0, turn))

    async def dissolve(self) -> bool:
        """Forget a closed revision for which nothing is left; False when there is something."""
        return bool(await self._link.run("dissolve"))

    @property
    def busy(self) -> bool:
        """Whether a job of this gateway is open, or somebody waits for one."""
        return self._own.busy

    def events(self, job_id: str, last_event_id: str = "0") -> AsyncIterator[tuple[str, bytes]]:
        """(id, event) after `last_event_id`, without end: the caller stops when the job is terminal."""
        return self._tail.follow(self._keys.events(job_id), last_event_id)

    async def rest_of_events(self, job_id: str, last_event_id: str) -> list[tuple[str, bytes]]:
        """The events after `last_event_id` of a job that is terminal. Raises Unavailable."""
        return await self._tail.rest(self._keys.events(job_id), last_event_id)

    async def depth(self) -> Depth:
        """How full the queues are."""
        queues, open_jobs, results, dead = await self._link.run("depth")
        depths = {
            name: QueueDepth(waiting=length - pending, running=pending, oldest_age_s=age_ms / 1000)
            for name, (length, pending, age_ms) in zip(("interactive", "bulk", "codec"), queues, strict=True)
        }
        return Depth(queues=depths, open=open_jobs, results=results, dead=dead)

    async def workers(self) -> list[dict[str, Any]]:
        """What the living workers say about themselves."""
        redis = self._link.redis
        names: Any = await self._link.call(lambda: redis.zrange(self._keys.workers, 0, -1))
        if not names:
            return []
        texts = await self._link.call(lambda: redis.mget(names))
        return [json.loads(text) for text in texts if text is not None]

    async def ping(self) -> None:
        """Raises Unavailable when Redis does not answer."""
        await self._link.call(self._link.redis.ping)
