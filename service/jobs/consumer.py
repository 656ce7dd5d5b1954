"""The worker's side of the job protocol: claim, keep, finish, give back. Synchronous, for several threads."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from redis.exceptions import RedisError

from service.jobs.job import DONE, ERROR, ClaimedJob, Ending, QueueLimits
from service.jobs.keys import GROUP, Keys
from service.jobs.redis_link import BLOCK_MAX_S, ThreadLink, backoff_s, describe, is_transient

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_BULK_EVERY = 8
_EVENTS_KEPT = 64
_EVENTS_TTL_MS = 60_000
_PATIENCE_S = 60.0


class Consumer:
    """One worker's hold on the queues.

    `worker_id` must be new for each process. While Redis is away nothing raises: claims find nothing, beats
    lose nothing, and results are kept and tried again for up to a minute; `available` tells. Each stream is
    to be claimed from by one thread of the worker only.
    """

    def __init__(self, url: str, keys: Keys, worker_id: str, limits: QueueLimits) -> None:
        self._link = ThreadLink(url, keys.shared, worker_id)
        self._keys = keys
        self._limits = limits
        self._lease_ms = int(limits.lease_s * 1000)
        self.worker_id = worker_id
        self._hint_key = keys.hint(worker_id)
        self._held: dict[str, ClaimedJob] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._failures = 0
        self._turn = 0
        self._doubt: set[tuple[str, ...]] = set()
        self._quiet: set[tuple[str, ...]] = set()
        self._cursors = dict.fromkeys(keys.queues, b"0-0")
        self._hint_seen = b"0-0"

    @property
    def available(self) -> bool:
        """Whether the last call reached Redis."""
        return self._failures == 0

    @property
    def held(self) -> list[ClaimedJob]:
        """The jobs that were claimed and are neither finished, released nor lost."""
        with self._lock:
            return list(self._held.values())

    def interrupt(self) -> None:
        """Stop waiting for a Redis that is away: such calls in other threads return soon, unfinished."""
        self._closing.set()

    def close(self) -> None:
        """Drop the connections, once no other thread uses them any more."""
        self.interrupt()
        self._link.close()

    def claim(self, *, generate: bool, codec: bool, block_s: float) -> ClaimedJob | None:
        """The next job, begun; waits up to `block_s` (5 s at most) when there is none."""
        jobs = self.claim_some(1, generate=generate, codec=codec, block_s=block_s)
        return jobs[0] if jobs else None

    def claim_some(self, limit: int, *, generate: bool, codec: bool, block_s: float) -> list[ClaimedJob]:
        """Jobs, begun, until their images number `limit`, in one round trip; waits as `claim` for the first.

        The last job may go over the limit, since nobody knows its size before it is taken.
        """
        queues = self._order(generate, codec)
        if not queues:
            return []
        marker = tuple(sorted(queues))
        deadline = time.monotonic() + min(block_s, BLOCK_MAX_S)
        try:
            jobs = [] if block_s and marker in self._quiet else self._claim_now(queues, limit)
            remaining_ms = int((deadline - time.monotonic()) * 1000)
            if not jobs and remaining_ms > 0:
                jobs = self._claim_blocking(queues, limit, remaining_ms)
        except (RedisError, OSError) as error:
            self._doubt.add(marker)
            self._quiet.discard(marker)
            self._trouble(error, within_s=deadline - time.monotonic())
            return []
        # When there was room for more than one job and no more came, the next one has to be waited for.
        if len(jobs) == 1 and jobs[0].rows < limit:
            self._quiet.add(marker)
        else:
            self._quiet.discard(marker)
        return jobs

    def _order(self, generate: bool, codec: bool) -> list[str]:
        queues = [self._keys.codec] if codec else []
        if generate:
            self._turn += 1
            pair = [self._keys.interactive, self._keys.bulk]
            queues += pair if self._turn % _BULK_EVERY else reversed(pair)
        return queues

    def _claim_now(
        self, queues: list[str], limit: int, read: tuple[bytes, bytes, bytes] = (b"", b"", b"")
    ) -> list[ClaimedJob]:
        marker = tuple(sorted(queues))
        doubt = marker in self._doubt
        known = [job.id for job in self.held] if doubt else []
        head = (self.worker_id, self._hint_key, int(doubt), limit, len(queues), *read)
        jobs = [self._take(reply) for reply in self._run("claim", *head, *queues, *known)]
        # More answers may have been lost than were asked for now.
        if sum(job.rows for job in jobs) < limit:
            self._doubt.discard(marker)
        return jobs

    def _claim_blocking(self, queues: list[str], limit: int, block_ms: int) -> list[ClaimedJob]:
        ids = (">" for _ in queues)
        options = ("COUNT", 1, "BLOCK", block_ms, "STREAMS")
        reply = self._link.call("XREADGROUP", "GROUP", GROUP, self.worker_id, *options, *queues, *ids)
        self._answered()
        found = [(queue, entry, fields[1]) for queue, entries in reply or () for entry, fields in entries]
        # COUNT holds for each stream: what comes beyond one job goes back, to be claimed below if it fits.
        for queue, entry, job_id in found[1:]:
            self._run("release", job_id, self.worker_id, queue, entry)
        return self._claim_now(queues, limit, found[0]) if found else []

    def reclaim(self) -> ClaimedJob | None:
        """One job whose worker was silent for a lease, begun here to run alone; to be called each lease/2."""
        pairs = [part for pair in self._cursors.items() for part in pair]
        known = [job.id for job in self.held]
        count = len(self._cursors)
        try:
            reply = self._run(
                "reclaim", self.worker_id, self._hint_key, self._lease_ms, count, *pairs, *known
            )
        except (RedisError, OSError) as error:
            self._trouble(error)
            return None
        self._cursors = dict(zip(self._cursors, reply[0], strict=True))
        return self._take(reply[1]) if reply[1] else None

    def beat(self, jobs: Iterable[ClaimedJob]) -> set[str]:
        """Renew the leases; returns the ids that are lost or cancelled. To be called each lease/4."""
        parts = [part for job in jobs for part in (job.id, job.queue, job.entry_id)]
        if not parts:
            return set()
        try:
            lost = {job_id.decode() for job_id in self._run("beat", self.worker_id, *parts)}
        except (RedisError, OSError) as error:
            self._trouble(error)
            return set()
        for job_id in lost:
            self._let_go(job_id)
        return lost

    def finish(self, job: ClaimedJob, result: bytes) -> bool:
        """Record a result; False when it came too late (the job is terminal already) or Redis stayed away."""
        return self.settle([Ending(job, result)])[0]

    def fail(self, job: ClaimedJob, code: str, message: str) -> bool:
        """Record an error; False when the attempt is not the current one, or as for `finish`."""
        return self.settle([Ending(job, error_code=code, error_message=message)])[0]

    def settle(self, endings: Sequence[Ending]) -> list[bool]:
        """Record results and errors together, as `finish` and `fail` do."""
        calls = [self._finish_args(self._bounded(one)) for one in endings]
        replies = self._patiently(lambda: self._run_all("finish", calls))
        for one in endings:
            self._let_go(one.job.id)
        return [bool(reply) for reply in replies or [0] * len(endings)]

    def _bounded(self, ending: Ending) -> Ending:
        got, allowed = len(ending.result), self._limits.result_bytes
        if got <= allowed:
            return ending
        size = f"the result has {got} bytes, allowed are {allowed}"
        return Ending(ending.job, error_code="result_too_large", error_message=size)

    def _finish_args(self, ending: Ending) -> tuple[str | bytes | int, ...]:
        job, state = ending.job, ERROR if ending.error_code else DONE
        outcome = (ending.result, ending.error_code, ending.error_message)
        return (job.id, self.worker_id, job.attempt, state, *outcome)

    def release(self, job: ClaimedJob) -> None:
        """Give a job back uncounted; another worker takes it at once."""
        self._patiently(lambda: self._run("release", job.id, self.worker_id, job.queue, job.entry_id))
        self._let_go(job.id)

    def publish(self, job_id: str, event: bytes) -> bool:
        """Tell the followers of a job about its progress; lost when Redis is away, then False."""
        key = self._keys.events(job_id)
        try:
            with self._link.redis.pipeline(transaction=False) as pipe:
                pipe.xadd(key, {"event": event}, maxlen=_EVENTS_KEPT, approximate=False)
                pipe.pexpire(key, _EVENTS_TTL_MS)
                pipe.execute()
        except (RedisError, OSError) as error:
            _log.debug("progress of %s was lost: %s", job_id, describe(error))
            return False
        return True

    def hints(self, block_s: float) -> list[str]:
        """Ids to stop: cancelled or past their deadline. Waits `block_s` (5 s at most) for the first."""
        block_ms = max(1, int(min(block_s, BLOCK_MAX_S) * 1000))
        try:
            reply: Any = self._link.redis.xread({self._hint_key: self._hint_seen}, count=100, block=block_ms)
        except (RedisError, OSError) as error:
            self._trouble(error, within_s=block_s)
            return []
        entries = reply[0][1] if reply else []
        if entries:
            self._hint_seen = entries[-1][0]
        return [fields[b"id"].decode() for _, fields in entries]

    def announce(self, info: dict[str, Any]) -> None:
        """Say that this worker is alive and what it serves (JSON values); holds for one lease."""
        key = self._keys.worker(self.worker_id)
        text = json.dumps({**info, "id": self.worker_id})
        try:
            self._run("announce", self.worker_id, key, text, self._lease_ms, 4 * self._lease_ms)
        except (RedisError, OSError) as error:
            self._trouble(error)

    def unblock(self) -> None:
        """End the blocking reads of this worker's other threads as if their time were over."""
        try:
            for client in self._link.redis.client_list():
                if client["name"] == self.worker_id and "b" in client["flags"]:
                    self._link.redis.client_unblock(int(client["id"]))
        except (RedisError, OSError) as error:
            # Not every Redis allows it; the reads then end by themselves.
            _log.debug("blocking reads go on: %s", describe(error))

    def leave(self) -> tuple[int, bool] | None:
        """Leave the list of workers before the last job: how many are open, and whether the list is empty.

        To be repeated: a revision without workers is closed to new jobs. None while Redis is away.
        """
        try:
            open_jobs, last = self._run("leave", self._keys.worker(self.worker_id), self._lease_ms)
            return int(open_jobs), bool(last)
        except (RedisError, OSError) as error:
            self._trouble(error)
            return None

    def retire(self) -> None:
        """Leave the list of workers; to be called after the last job."""
        try:
            self._run("retire", self.worker_id, self._keys.worker(self.worker_id))
        except (RedisError, OSError) as error:
            self._trouble(error)

    def _run(self, name: str, *args: Any) -> Any:
        return self._run_all(name, [args])[0]

    def _run_all(self, name: str, calls: Sequence[Sequence[Any]]) -> list[Any]:
        replies = self._link.run_all(name, calls)
        self._answered()
        return replies

    def _take(self, reply: Any) -> ClaimedJob:
        job_id, kind, queue, entry, attempts, solo, payload, rows, deadline, left_ms, events, trace, age = (
            reply
        )
        job = ClaimedJob(
            id=job_id.decode(),
            kind=kind.decode(),
            queue=queue.decode(),
            entry_id=entry.decode(),
            attempt=int(attempts),
            solo=bool(solo),
            payload=payload,
            rows=int(rows),
            deadline_ms=int(deadline),
            deadline_s=time.monotonic() + left_ms / 1000,
            wants_events=events == b"1",
            trace=trace.decode(),
            age_ms=age,
        )
        with self._lock:
            self._held[job.id] = job
        return job

    def _let_go(self, job_id: str) -> None:
        with self._lock:
            self._held.pop(job_id, None)

    def _trouble(self, error: Exception, within_s: float = 0.0) -> float:
        """Note a failed call and wait a little, `within_s` seconds at most. Errors of the program go up."""
        if not is_transient(error):
            raise error
        with self._lock:
            self._failures += 1
            first = self._failures == 1
        if first:
            _log.warning("Redis does not answer as it should, trying again: %s", describe(error))
        delay = backoff_s(self._failures)
        self._closing.wait(max(0.0, min(delay, within_s)))
        return delay

    def _answered(self) -> None:
        """Note a call that reached Redis."""
        with self._lock:
            again, self._failures = self._failures > 0, 0
        if again:
            _log.info("Redis answers again")

    def _patiently(self, call: Callable[[], _T]) -> _T | None:
        """For calls that may be repeated: try until Redis answers, a minute at most."""
        give_up = time.monotonic() + _PATIENCE_S
        # Whoever closes does not wait for a Redis that is away; one that answers still gets everything.
        while self.available or not self._closing.is_set():
            try:
                reply = call()
            except (RedisError, OSError) as error:
                if time.monotonic() > give_up:
                    _log.error("gave up after %.0f s without Redis: %s", _PATIENCE_S, describe(error))
                    return None
                self._trouble(error, within_s=2.0)
            else:
                self._answered()
                return reply
        return None
