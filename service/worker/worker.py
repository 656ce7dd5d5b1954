"""A worker process: claims jobs, feeds the engine, writes results, keeps its leases alive, drains on SIGTERM.

Threads, each with one task: the engine (whoever calls `run`), two that claim, beat, hints, progress, and
those of the finisher, which encodes pictures and records results. Whatever fails in one of them ends the
process, and the queue gives its jobs to another worker.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from models.bundle import Bundle, Manifest
from models.errors import MaskBitError, RuntimeLost
from models.runtime.base import Pixels, Runtime
from service.errors import ServiceError, Unavailable
from service.jobs.consumer import Consumer
from service.jobs.job import ClaimedJob
from service.jobs.payloads import JobPayload, unpack_job
from service.logs import of_job
from service.telemetry import WorkerMetrics
from service.worker.engine import Engine
from service.worker.finisher import Finished, Finisher
from service.worker.progress import Progress
from service.worker.scheduler import Row, SlotTable
from service.worker.stall import StallWatch
from service.worker.task import NoObserver, Observer, Task

log = logging.getLogger(__name__)

CLAIM_BLOCK_S = 1.0
IDLE_WAIT_S = 1.0
UNBLOCK_EVERY_S = 0.02
PATIENCE_S = 5.0  # for a Redis that is away when the worker ends
QUIET_S = 3.0  # by then gateways have submitted again what Redis lost


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker announces about itself; `passed_over`: why it has no runtime that would be faster."""

    bundle: str
    runtime: str
    precision: str
    device: str
    slots: int
    pid: int
    passed_over: tuple[str, ...]


class Worker:
    """Ties a consumer of the queue to an engine; `run` returns after `stop`, jobs finished or released.

    `heir_of`: the revision whose queue it is, if that is not the one of `bundle`. `passed_over` goes into
    what it announces. `call_limit_s`: when a call of the runtime ends by itself, 0 where none does.
    """

    def __init__(
        self,
        consumer: Consumer,
        runtime: Runtime,
        bundle: Bundle,
        *,
        table: SlotTable,
        lease_s: float,
        drain_s: float,
        metrics: WorkerMetrics,
        observer: Observer | None = None,
        heir_of: Manifest | None = None,
        passed_over: tuple[str, ...] = (),
        call_limit_s: float = 0.0,
    ) -> None:
        self.consumer = consumer
        self.metrics = metrics
        self.lease_s = lease_s
        self.drain_s = drain_s
        self._observer = observer or NoObserver()
        self._bundle = bundle
        self._heir_of = heir_of
        self.engine = Engine(runtime, bundle.manifest, table, self, metrics, observer=self._observer)
        self._stall = StallWatch(self.engine, call_limit_s)
        self.info = WorkerInfo(
            bundle.ref,
            runtime.name,
            runtime.precision,
            runtime.device_name,
            table.slots,
            os.getpid(),
            passed_over,
        )
        metrics.model_info.labels(bundle.ref, runtime.name, runtime.precision).set(1)
        self._jobs: dict[str, ClaimedJob] = {}
        # What is claimed or forgotten is in the engine, or out of it, before the next of the two.
        self._book = threading.Lock()
        self._stopping = threading.Event()
        self._leaving = threading.Event()
        self._quiet_since_s = float("inf")
        self._ended = threading.Event()
        self._crash: BaseException | None = None
        made_by = bundle.ref if heir_of else ""
        self._finisher = Finisher(consumer, metrics, self._observer, self._guard, made_by)
        self._progress = Progress(consumer, self._finisher, self._guard)

    def run(self) -> None:
        """Work until `stop`; raises what broke a thread."""
        if not self.leaving:
            self._announce()
        self._finisher.start()
        self._progress.start()
        claimers = [self._start_thread(loop) for loop in (self._claim_pictures, self._claim_codec)]
        helpers = [self._start_thread(loop) for loop in (self._beat, self._hints)]
        self._guard(self._draw)
        self._stopping.set()
        # Redis may be away just now: what waits for it is cut off, and the leases end by themselves.
        patience = threading.Timer(PATIENCE_S, self.consumer.interrupt)
        patience.daemon = True
        patience.start()
        self._end(claimers)
        # After a crash nothing is given back uncounted, since a job of this worker may have caused it: its
        # lease ends, and it is run alone elsewhere. That a server went away is the fault of no job.
        if self._crash is None or isinstance(self._crash, RuntimeLost):
            self._release_rest()
        self._progress.close()
        self._finisher.close()
        self._ended.set()
        self._end(helpers)
        patience.cancel()
        self.consumer.retire()
        self.consumer.close()
        if self._crash is not None:
            raise self._crash

    def _start_thread(self, loop: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(
            target=self._guard, args=(loop,), name=loop.__name__.strip("_"), daemon=True
        )
        thread.start()
        return thread

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        """Wait for `threads`, whose blocking reads are of no use any more."""
        give_up = time.monotonic() + 2 * CLAIM_BLOCK_S
        while any(thread.is_alive() for thread in threads) and time.monotonic() < give_up:
            self.consumer.unblock()
            for thread in threads:
                thread.join(UNBLOCK_EVERY_S)

    def stop(self) -> None:
        """Claim no more, finish what runs within the drain time, then end. Safe in a signal handler."""
        self._stopping.set()
        self.engine.hurry()

    def leave(self) -> None:
        """Make way for another revision: be chosen no more, and end when no job of this one is open.

        Safe in a signal handler, and to be repeated.
        """
        self._leaving.set()

    @property
    def leaving(self) -> bool:
        """Whether `leave` was called."""
        return self._leaving.is_set()

    def _step_back(self) -> None:
        """Stop when nothing has been open for a while: a job that Redis lost comes again within it.

        An heir also stops when a worker with the weights that the jobs were meant for is back.
        """
        now = time.monotonic()
        open_jobs, last = self.consumer.leave() or (-1, True)
        if self._heir_of is not None and not last:
            self.stop()
        quiet = open_jobs == 0
        self._quiet_since_s = min(self._quiet_since_s, now) if quiet else float("inf")
        if now - self._quiet_since_s >= QUIET_S:
            self.stop()

    def _announce(self) -> None:
        self.consumer.announce(asdict(self.info) | self.engine.meter.speed())

    # -- threads ---------------------------------------------------------------------------------------------

    def _guard(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as exc:
            log.exception("the thread %s broke; the worker ends", threading.current_thread().name)
            self._crash = exc
            self.stop()

    def _draw(self) -> None:
        """The engine's loop."""
        drain_until = float("inf")
        while not (self._stopping.is_set() and (self.engine.idle or self._crash is not None)):
            if self._stopping.is_set():
                drain_until = min(drain_until, time.monotonic() + self.drain_s)
                if time.monotonic() >= drain_until:
                    return
            self.engine.wait_for_work(IDLE_WAIT_S)
            self.engine.turn()

    def _claim_pictures(self) -> None:
        """Claim generate jobs, apart from the others, so that no kind waits in the other's blocking read."""
        while not self._stopping.is_set():
            free = self.engine.wait_for(self.engine.free_slots, IDLE_WAIT_S)
            if free:
                self._claim(free, generate=True)

    def _claim_codec(self) -> None:
        while not self._stopping.is_set():
            free = self.engine.wait_for(self.engine.free_codec, IDLE_WAIT_S)
            if free:
                self._claim(free, generate=False)

    def _claim(self, images: int, *, generate: bool) -> None:
        for job in self.consumer.claim_some(
            images, generate=generate, codec=not generate, block_s=CLAIM_BLOCK_S
        ):
            self._start(job)

    def _start(self, job: ClaimedJob) -> None:
        if self._stopping.is_set():
            self.consumer.release(job)
            return
        with self._book:
            self._begin(job)

    def _begin(self, job: ClaimedJob) -> None:
        known = job.id in self._jobs
        self._jobs[job.id] = job
        if known:
            return
        self._observer.claimed(job)
        if job.attempt > 1:
            self.metrics.redeliveries.inc()
        try:
            request = self._request_of(job)
        except ServiceError as exc:
            del self._jobs[job.id]
            self._finisher.add(Finished(job, error=exc))
            return
        self.engine.submit(Task(job.id, request, solo=job.solo, deadline_s=job.deadline_s, trace=job.trace))

    def _request_of(self, job: ClaimedJob) -> JobPayload:
        """What the job asks for. Raises Unavailable for what would be something else by these weights."""
        request = unpack_job(job.kind, job.payload)
        former = self._heir_of
        if former and not self._bundle.manifest.understands(former, tokens=request.holds_tokens):
            raise Unavailable(
                "the workers of the revision that took this job are gone, and it would be another job for "
                f"{self._bundle.ref}; ask again"
            )
        return request

    def _beat(self) -> None:
        """Renew leases and the announcement; take over a lost job when there is room."""
        period = self.lease_s / 4
        beats = 0
        while not self._ended.wait(period):
            self._stall.look()
            lost = self.consumer.beat(self.consumer.held)
            if lost:
                self._forget(lost)
            if self._leaving.is_set():
                self._step_back()
            else:
                self._announce()
            self.metrics.gpu_memory.set(self.engine.runtime.memory_bytes())
            beats += 1
            if beats % 2 == 0 and not self._stopping.is_set() and not self._has_suspect():
                job = self.consumer.reclaim()
                if job is not None:
                    log.warning("took over job %s, attempt %d", job.id, job.attempt, extra=of_job(job.id))
                    self._start(job)

    def _has_suspect(self) -> bool:
        """Whether a job that was taken over is still here: one at a time, as each needs the worker alone."""
        return any(job.solo for job in list(self._jobs.values()))

    def _hints(self) -> None:
        while not self._ended.is_set():
            ids = self.consumer.hints(CLAIM_BLOCK_S)
            if ids:
                self._forget(set(ids))

    def _forget(self, ids: set[str]) -> None:
        with self._book:
            for job_id in ids:
                job = self._jobs.pop(job_id, None)
                if job is not None:
                    self._observer.ended(job, "dropped")
            self.engine.drop(ids)

    def _release_rest(self) -> None:
        """Give back what the drain time did not suffice for."""
        jobs = list(self._jobs.values())
        self._jobs.clear()
        self.engine.drop(job.id for job in jobs)
        for job in jobs:
            log.info("released job %s", job.id, extra=of_job(job.id))
            self.consumer.release(job)
            self._observer.ended(job, "released")

    # -- the engine's listener -------------------------------------------------------------------------------

    def progressed(self, task: Task, row: Row, preview: Pixels | None) -> None:
        """Tell those who follow the task."""
        masked = row.plans[row.step - 1].mask_count
        data = {"image": row.image, "step": row.step, "steps": len(row.plans), "masked": masked}
        self._progress.tell(task.id, data, preview)

    def completed(self, task: Task) -> None:
        """Encode and record, in the finisher's threads."""
        job = self._jobs.pop(task.id, None)
        if job is not None:
            compute_ms = (time.monotonic() - task.started_s) * 1000
            follow = self._progress.finish if job.wants_events else self._finisher.add
            follow(Finished(job, task, compute_ms))

    def failed(self, task: Task, error: MaskBitError) -> None:
        """Record the error."""
        job = self._jobs.pop(task.id, None)
        if job is not None:
            self._finisher.add(Finished(job, error=error))
