"""The gateway's side of the job protocol: submit, wait, look, cancel, follow."""

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from service.errors import (
    DeadlineUnmeetable,
    IdempotencyConflict,
    Moved,
    NotFound,
    PayloadTooLarge,
    QueueFull,
    ResultExpired,
    ServiceError,
    TenantLimit,
    Unavailable,
)
from service.jobs.events import EventTail
from service.jobs.job import DONE, EXPIRED, QUEUED, RUNNING, Depth, JobView, NewJob, QueueDepth, QueueLimits
from service.jobs.keys import Keys
from service.jobs.redis_link import TROUBLE, AsyncLink, backoff_s, describe, open_line
from service.jobs.speed import Forecast, Speed

_log = logging.getLogger(__name__)

_TICK_S = 1.0
_INBOX_BLOCK_MS = 1000
_INBOX_BATCH = 200
_CHUNK = 500
_SWEEP_BATCH = 100
_LATE_S = 5.0
# Results that are forgotten wait so long for others, to go together.
_FORGET_PAUSE_S = 0.05


@dataclass
class _Open:
    """An own job that is not known to be terminal; `accepted` once Redis has said so."""

    job: NewJob
    deadline_s: float
    accepted: bool = False


class JobStore:
    """One gateway's view of the queue. Trouble with Redis is raised as Unavailable and passes by itself."""

    def __init__(self, url: str, keys: Keys, limits: QueueLimits) -> None:
        self._keys = keys
        self._limits = limits
        self._link = AsyncLink(url, keys.shared)
        self._inbox_line = open_line(url)
        self._inbox = keys.inbox(uuid.uuid4().hex)
        self._inbox_seen = "0-0"
        self._tail = EventTail(self._link)
        self._open: dict[str, _Open] = {}
        self._waits: dict[str, asyncio.Future[JobView]] = {}
        self._forgotten: list[str] = []
        self._forgetting: asyncio.Task[None] | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._closing = False

    async def start(self) -> None:
        """Begin to read the inbox and to sweep. Does not need Redis to be there yet."""
        self._loops = [asyncio.create_task(self._inbox_loop()), asyncio.create_task(self._tick_loop())]

    async def close(self) -> None:
        """Stop; whoever still waits gets Unavailable. The jobs themselves go on."""
        self._closing = True
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        for job_id in list(self._waits):
            self._reject(job_id, Unavailable("the gateway is shutting down", retry_after_s=2.0))
        await self._tail.close()
        await self._link.close()
        await self._inbox_line.close()

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
        return await asyncio.shield(self._link.spawn(self._submit(job, speed or Speed())))

    async def _submit(self, job: NewJob, speed: Speed) -> str:
        now_s = asyncio.get_running_loop().time()
        entry = self._open[job.id] = _Open(job, now_s + job.deadline_ms / 1000)
        try:
            reply = await self._send(job, job.deadline_ms, speed.forecast(job), again=False)
            job_id = self._verdict(job, reply, speed)
        except BaseException:
            self._open.pop(job.id, None)
            raise
        entry.accepted = True
        if job_id != job.id:
            self._open.pop(job.id, None)
        return job_id

    async def _send(self, job: NewJob, deadline_ms: int, forecast: Forecast, *, again: bool) -> Any:
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
        foreseen = (forecast.run_ms, forecast.at_once, forecast.rows_per_ms)
        return await self._link.run("submit", *names, *fields, *bounds, *foreseen)

    def _tenant_jobs(self, job: NewJob) -> int:
        return self._limits.tenant_jobs if job.tenant_jobs is None else job.tenant_jobs

    def _verdict(self, job: NewJob, reply: Any, speed: Speed) -> str:
        verdict, value, *waiting = reply
        if verdict in (b"OK", b"DUP"):
            return str(value.decode())
        if verdict == b"CONFLICT":
            key = job.idempotency_key
            raise _conflict(key)
        if verdict == b"MOVED":
            raise Moved("the model has moved on to a new revision", retry_after_s=1.0)
        if verdict == b"LATE":
            raise _unmeetable(job, value, speed)
        retry_after_s = value / 1000 or speed.retry_after_s(*(int(rows or 0) for rows in waiting))
        if verdict == b"TENANT":
            allowed = self._tenant_jobs(job)
            raise TenantLimit(f"{allowed} unfinished jobs are allowed at a time", retry_after_s=retry_after_s)
        raise QueueFull("the queue is full", retry_after_s=retry_after_s)

    async def wait(self, job_id: str) -> JobView:
        """The job once it is terminal. Raises NotFound, ResultExpired; Unavailable past the deadline."""
        future = self._waits.get(job_id)
        if future is None:
            future = self._waits[job_id] = asyncio.get_running_loop().create_future()
            if job_id not in self._open:
                await self._look(job_id)
        return await asyncio.shield(future)

    async def get(self, job_id: str, tenant: str) -> JobView:
        """The job now. Raises NotFound (also for another tenant's job), ResultExpired, Unavailable."""
        view = await self._view(job_id, tenant)
        if view.tenant != tenant:
            raise _not_found(job_id)
        return view

    async def cancel(self, job_id: str, tenant: str) -> bool:
        """Cancel a job; False when it was terminal already. Raises NotFound, Unavailable."""
        reply: int = await self._link.run("cancel", job_id, tenant)
        if reply < 0:
            raise _not_found(job_id)
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
            raise _conflict(key)
        return str(reply[0].decode())

    async def open_door(self) -> None:
        """Let new jobs in."""
        await self._link.run("door", 1)

    async def close_door(self) -> None:
        """Refuse new jobs, here and in every other gateway, as Moved."""
        await self._link.run("door", 0)

    async def dissolve(self) -> bool:
        """Forget a closed revision for which nothing is left; False when there is something."""
        return bool(await self._link.run("dissolve"))

    @property
    def busy(self) -> bool:
        """Whether a job of this gateway is open, or somebody waits for one."""
        return bool(self._open or self._waits)

    def events(self, job_id: str, last_event_id: str = "0") -> AsyncIterator[tuple[str, bytes]]:
        """(id, event) after `last_event_id`, without end: the caller stops when the job is terminal."""
        return self._tail.follow(self._keys.events(job_id), last_event_id)

    async def rest_of_events(self, job_id: str, last_event_id: str) -> list[tuple[str, bytes]]:
        """The events after `last_event_id` of a job that is terminal. Raises Unavailable."""
        return await self._tail.rest(self._keys.events(job_id), last_event_id)

    async def depth(self) -> Depth:
        """How full the queues are."""
        queues, open_jobs, results = await self._link.run("depth")
        depths = {
            name: QueueDepth(waiting=length - pending, running=pending, oldest_age_s=age_ms / 1000)
            for name, (length, pending, age_ms) in zip(("interactive", "bulk", "codec"), queues, strict=True)
        }
        return Depth(queues=depths, open=open_jobs, results=results)

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

    async def _view(self, job_id: str, tenant: str) -> JobView:
        reply = await self._link.run("view", job_id, _tombstone(tenant, job_id))
        if not reply:
            raise _not_found(job_id)
        if reply == [b"gone"]:
            raise ResultExpired(f"the result of job {job_id} has expired")
        names = ("state", "kind", "tenant", "created", "started", "finished", "attempts", "error_code")
        fields = dict(zip((*names, "error_message", "result", "rows", "cost"), reply, strict=False))
        return JobView.from_fields(job_id, fields, position=reply[-1])

    async def _look(self, job_id: str) -> None:
        """Fetch a job that somebody waits for, and tell the waiters if there is nothing left to wait for."""
        own = self._open.get(job_id)
        try:
            view = await self._view(job_id, own.job.tenant if own else "")
        except (NotFound, ResultExpired) as error:
            # What Redis has lost just now comes again.
            if own is None or isinstance(error, ResultExpired):
                self._reject(job_id, error)
            return
        if view.terminal:
            self._resolve(view)

    def _resolve(self, view: JobView) -> None:
        self._open.pop(view.id, None)
        future = self._waits.pop(view.id, None)
        if future is not None and not future.done():
            future.set_result(view)

    def _reject(self, job_id: str, error: ServiceError) -> None:
        self._open.pop(job_id, None)
        future = self._waits.pop(job_id, None)
        if future is not None and not future.done():
            future.set_exception(error)
            # Marks it as seen: the waiters may all have left.
            future.exception()

    async def _inbox_loop(self) -> None:
        failures = 0
        while not self._closing:
            try:
                reply = await self._inbox_line.call(
                    *("XREAD", "COUNT", _INBOX_BATCH, "BLOCK", _INBOX_BLOCK_MS),
                    *("STREAMS", self._inbox, self._inbox_seen),
                )
                failures = 0
            except TROUBLE as error:
                failures += 1
                if failures == 1:
                    _log.warning("the inbox cannot be read, trying again: %s", describe(error))
                await asyncio.sleep(backoff_s(failures))
                continue
            for entry, note in reply[0][1] if reply else ():
                self._inbox_seen = entry.decode()
                names = (name.decode() for name in note[::2])
                self._receive(dict(zip(names, note[1::2], strict=True)))

    def _receive(self, note: dict[str, Any]) -> None:
        view = JobView.from_fields(note["id"].decode(), note)
        if view.state == DONE and view.result is None:
            if view.id in self._waits:
                self._link.spawn(self._look_or_later(view.id))
            else:
                self._open.pop(view.id, None)
        else:
            self._resolve(view)

    async def _look_or_later(self, job_id: str) -> None:
        try:
            await self._look(job_id)
        except Unavailable:
            _log.info("job %s is done, its result is fetched later", job_id)

    async def _tick_loop(self) -> None:
        while not self._closing:
            await asyncio.sleep(_TICK_S)
            try:
                await self._tick()
            except Unavailable:
                self._give_up_late()
            except Exception:
                _log.exception("sweeping failed")

    async def _tick(self) -> None:
        while await self._link.run("sweep") == _SWEEP_BATCH:
            pass
        seen = self._inbox_seen
        await self._link.call(lambda: self._link.redis.xtrim(self._inbox, minid=seen, approximate=False))
        # Accepted before Redis is asked: a job on its way there would look like a lost one.
        on_the_way = {job_id for job_id, own in self._open.items() if not own.accepted}
        ids = list((self._open.keys() | self._waits.keys()) - on_the_way)
        for start in range(0, len(ids), _CHUNK):
            await self._check(ids[start : start + _CHUNK])

    async def _check(self, ids: list[str]) -> None:
        """Compare with Redis what the inbox may have missed, and submit again what Redis has lost."""
        parts = []
        for job_id in ids:
            own = self._open.get(job_id)
            parts += [job_id, _tombstone(own.job.tenant if own else "", job_id)]
        for job_id, raw in zip(ids, await self._link.run("states", *parts), strict=True):
            state, own = raw.decode(), self._open.get(job_id)
            if state in (QUEUED, RUNNING):
                continue
            if own is not None and state == "":
                await self._submit_again(own)
            elif job_id in self._waits:
                await self._look(job_id)
            else:
                self._open.pop(job_id, None)

    async def _submit_again(self, own: _Open) -> None:
        job = own.job
        remaining_ms = int((own.deadline_s - asyncio.get_running_loop().time()) * 1000)
        if remaining_ms <= 0:
            self._resolve(_expired_view(job))
            return
        try:
            self._verdict(job, await self._send(job, remaining_ms, Forecast(), again=True), Speed())
            _log.warning("Redis had lost job %s, it is queued again", job.id)
        except QueueFull as error:
            _log.warning("Redis had lost job %s, to be queued again later: %s", job.id, error)

    def _give_up_late(self) -> None:
        """Without Redis nobody says that a deadline has passed; do not wait for ever."""
        late_s = asyncio.get_running_loop().time() - _LATE_S
        for job_id in [one for one, own in self._open.items() if own.deadline_s < late_s]:
            self._reject(job_id, Unavailable("the job queue does not answer", retry_after_s=2.0))


def _expired_view(job: NewJob) -> JobView:
    fields = {"kind": job.kind, "state": EXPIRED, "tenant": job.tenant, "error_code": "deadline_passed"}
    return JobView.from_fields(job.id, {name: value.encode() for name, value in fields.items()})


def _tombstone(tenant: str, job_id: str) -> str:
    return f"{tenant}/{job_id}"


def _unmeetable(job: NewJob, needed_ms: int, speed: Speed) -> DeadlineUnmeetable:
    # What is too slow even in an empty queue need not come again.
    hopeless = speed.forecast(job).run_ms > job.deadline_ms
    return DeadlineUnmeetable(
        f"at the measured speed it takes {needed_ms} ms at least, the deadline allows {job.deadline_ms} ms",
        retry_after_s=None if hopeless else (needed_ms - job.deadline_ms) / 1000,
    )


def _conflict(key: str | None) -> IdempotencyConflict:
    return IdempotencyConflict(f"the idempotency key {key!r} was used before with another request")


def _not_found(job_id: str) -> NotFound:
    return NotFound(f"there is no job {job_id!r}")
