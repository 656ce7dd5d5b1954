"""The book of a gateway's own open jobs, and of who waits for which."""

import asyncio
import logging
import uuid
from dataclasses import dataclass
from typing import Any

from service.errors import NotFound, QueueFull, ResultExpired, ServiceError, Unavailable
from service.jobs.intake import Intake
from service.jobs.job import DONE, EXPIRED, QUEUED, RUNNING, JobView, NewJob, QueueLimits
from service.jobs.keys import Keys
from service.jobs.outage import Outage
from service.jobs.redis_link import TROUBLE, AsyncLink, backoff_s, describe, open_line
from service.jobs.speed import Speed
from service.jobs.views import fetch_view, tombstone

_log = logging.getLogger(__name__)

_TICK_S = 1.0
_INBOX_BLOCK_MS = 1000
_INBOX_BATCH = 200
_CHUNK = 500
_SWEEP_BATCH = 100
_LATE_S = 5.0
_NO_INBOX = "the inbox cannot be read"
_NO_SWEEP = "the queue cannot be swept"


@dataclass
class _Open:
    """An own job that is not known to be terminal; `accepted` once Redis has said so."""

    job: NewJob
    deadline_s: float
    accepted: bool = False


class OwnJobs:
    """Follows the jobs of one gateway to their ends and submits again what Redis has lost.

    The inbox tells of ends at once; each second Redis is asked about what the inbox may have missed.
    """

    def __init__(self, url: str, link: AsyncLink, keys: Keys, limits: QueueLimits) -> None:
        self._link = link
        self._inbox_line = open_line(url)
        self._inbox = keys.inbox(uuid.uuid4().hex)
        self._inbox_seen = "0-0"
        self._intake = Intake(link, keys, limits, self._inbox)
        self._open: dict[str, _Open] = {}
        self._waits: dict[str, set[asyncio.Future[JobView]]] = {}
        self._loops: list[asyncio.Task[None]] = []
        self._outage = Outage()
        self._closing = False

    def start(self) -> None:
        """Begin to read the inbox and to sweep."""
        self._loops = [asyncio.create_task(self._inbox_loop()), asyncio.create_task(self._tick_loop())]

    async def close(self) -> None:
        """Stop; whoever still waits gets Unavailable."""
        self._closing = True
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        for job_id in list(self._waits):
            self._reject(job_id, Unavailable("the gateway is shutting down", retry_after_s=2.0))
        await self._inbox_line.close()

    @property
    def busy(self) -> bool:
        """Whether a job is open, or somebody waits for one."""
        return bool(self._open or self._waits)

    async def submit(self, job: NewJob, speed: Speed) -> str:
        """Queue `job` and follow it; raises as `Intake.put` does. Not to be cancelled half-way."""
        now_s = asyncio.get_running_loop().time()
        entry = self._open[job.id] = _Open(job, now_s + job.deadline_ms / 1000)
        try:
            job_id = await self._intake.put(job, job.deadline_ms, speed)
        except BaseException:
            self._open.pop(job.id, None)
            raise
        entry.accepted = True
        if job_id != job.id:
            self._open.pop(job.id, None)
        return job_id

    async def wait(self, job_id: str) -> JobView:
        """The job once it is terminal, own or not; see `JobStore.wait`."""
        answer: asyncio.Future[JobView] = asyncio.get_running_loop().create_future()
        waiting = self._waits.setdefault(job_id, set())
        waiting.add(answer)
        answer.add_done_callback(waiting.discard)
        if len(waiting) == 1 and job_id not in self._open:
            await self._look(job_id)
        return await answer

    async def _look(self, job_id: str) -> None:
        """Fetch a job that somebody waits for, and tell the waiters if there is nothing left to wait for."""
        own = self._open.get(job_id)
        try:
            view = await fetch_view(self._link, job_id, own.job.tenant if own else "")
        except (NotFound, ResultExpired) as error:
            # What Redis has lost just now comes again.
            if own is None or isinstance(error, ResultExpired):
                self._reject(job_id, error)
            return
        if view.terminal:
            self._resolve(view)

    def _resolve(self, view: JobView) -> None:
        self._open.pop(view.id, None)
        for answer in self._waits.pop(view.id, ()):
            if not answer.done():
                answer.set_result(view)

    def _reject(self, job_id: str, error: ServiceError) -> None:
        self._open.pop(job_id, None)
        for answer in self._waits.pop(job_id, ()):
            if not answer.done():
                answer.set_exception(error)
                # Marks it as seen: whoever waited may have left.
                answer.exception()

    async def _inbox_loop(self) -> None:
        failures = 0
        while not self._closing:
            try:
                reply = await self._inbox_line.call(
                    *("XREAD", "COUNT", _INBOX_BATCH, "BLOCK", _INBOX_BLOCK_MS),
                    *("STREAMS", self._inbox, self._inbox_seen),
                )
            except TROUBLE as error:
                failures += 1
                self._outage.begin(_NO_INBOX, error)
                await asyncio.sleep(backoff_s(failures))
                continue
            failures = 0
            self._outage.end(_NO_INBOX)
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
        told = ""
        while not self._closing:
            await asyncio.sleep(_TICK_S)
            try:
                await self._tick()
            except Unavailable as error:
                self._outage.begin(_NO_SWEEP, error.__cause__ or error)
                self._give_up_late()
            except Exception as error:
                if describe(error) != told:
                    _log.exception("sweeping failed")
                told = describe(error)
            else:
                self._outage.end(_NO_SWEEP)
                told = ""

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
            parts += [job_id, tombstone(own.job.tenant if own else "", job_id)]
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
            await self._intake.put(job, remaining_ms, Speed(), again=True)
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
