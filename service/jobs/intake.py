"""Putting a job into the queue, and what Redis says to it."""

from typing import Any

from service.errors import DeadlineUnmeetable, IdempotencyConflict, Moved, QueueFull, TenantLimit
from service.jobs.job import NewJob, QueueLimits
from service.jobs.keys import Keys
from service.jobs.redis_link import AsyncLink
from service.jobs.speed import Speed


class Intake:
    """The way in of one gateway, which hears of its jobs at `inbox`."""

    def __init__(self, link: AsyncLink, keys: Keys, limits: QueueLimits, inbox: str) -> None:
        self._link = link
        self._keys = keys
        self._limits = limits
        self._inbox = inbox

    async def put(self, job: NewJob, deadline_ms: int, speed: Speed, *, again: bool = False) -> str:
        """Queue `job` for `deadline_ms` from now: its id, or the first job's with this idempotency key.

        With `again` it is one that Redis had accepted and lost. Raises QueueFull, TenantLimit,
        DeadlineUnmeetable, IdempotencyConflict, Moved, Unavailable.
        """
        return self._verdict(job, await self._send(job, deadline_ms, speed, again), speed)

    async def _send(self, job: NewJob, deadline_ms: int, speed: Speed, again: bool) -> Any:
        keys, limits = self._keys, self._limits
        generate = keys.bulk if job.priority == "bulk" else keys.interactive
        own_key = job.idempotency_key
        names = (
            job.id,
            generate if job.kind == "generate" else keys.codec,
            self._inbox,
            keys.tenant(job.tenant),
            keys.idempotency(job.tenant, own_key) if own_key else "",
            keys.events(job.id),
        )
        flags = (int(job.keep_result), int(job.wants_events), int(again))
        fields = (job.kind, job.tenant, job.fingerprint, job.payload, job.rows, job.cost, job.trace, *flags)
        ttl_ms = int(limits.result_ttl_s * 1000)
        bounds = (deadline_ms, ttl_ms, limits.open_jobs, self._tenant_jobs(job), limits.results)
        forecast = speed.forecast(job)
        foreseen = (forecast.run_ms, forecast.at_once, forecast.rows_per_ms)
        return await self._link.run("submit", *names, *fields, *bounds, *foreseen)

    def _tenant_jobs(self, job: NewJob) -> int:
        return self._limits.tenant_jobs if job.tenant_jobs is None else job.tenant_jobs

    def _verdict(self, job: NewJob, reply: Any, speed: Speed) -> str:
        verdict, value, *waiting = reply
        if verdict in (b"OK", b"DUP"):
            return str(value.decode())
        if verdict == b"CONFLICT":
            raise conflict(job.idempotency_key)
        if verdict == b"MOVED":
            raise Moved("the model has moved on to a new revision", retry_after_s=1.0)
        if verdict == b"LATE":
            raise _unmeetable(job, value, speed)
        retry_after_s = value / 1000 or speed.retry_after_s(*(int(rows or 0) for rows in waiting))
        if verdict == b"TENANT":
            allowed = self._tenant_jobs(job)
            raise TenantLimit(f"{allowed} unfinished jobs are allowed at a time", retry_after_s=retry_after_s)
        raise QueueFull("the queue is full", retry_after_s=retry_after_s)


def _unmeetable(job: NewJob, needed_ms: int, speed: Speed) -> DeadlineUnmeetable:
    # What is too slow even in an empty queue need not come again.
    hopeless = speed.forecast(job).run_ms > job.deadline_ms
    return DeadlineUnmeetable(
        f"at the measured speed it takes {needed_ms} ms at least, the deadline allows {job.deadline_ms} ms",
        retry_after_s=None if hopeless else (needed_ms - job.deadline_ms) / 1000,
    )


def conflict(key: str | None) -> IdempotencyConflict:
    """The error of an idempotency key that comes with another request."""
    return IdempotencyConflict(f"the idempotency key {key!r} was used before with another request")
