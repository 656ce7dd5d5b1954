"""Turns finished tasks into results and records them in Redis, in threads of its own.

What is encoded quickly is recorded together, with one round trip; a picture, whose file takes longer, alone.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from models.errors import MaskBitError
from models.schedule import forward_passes
from service.errors import JobFailed
from service.jobs.consumer import Consumer
from service.jobs.job import ClaimedJob, Ending
from service.jobs.payloads import DetokenizeJob, Pictures, TokenizeJob, Tokens
from service.logs import of_job
from service.pictures import npy_file, picture_file, tokens_file
from service.telemetry import WorkerMetrics
from service.worker.task import Observer, Task

log = logging.getLogger(__name__)

THREADS = 2
GATHER_S = 0.002
MOST = 32  # endings that are recorded together


@dataclass(frozen=True)
class Finished:
    """A job that the engine is through with: its task and the time that it took, or what went wrong."""

    job: ClaimedJob
    task: Task | None = None
    compute_ms: float = 0.0
    error: MaskBitError | None = None


class Finisher:
    """`guard` runs each thread's loop and is told what breaks it; `bundle` is told with each result."""

    def __init__(
        self,
        consumer: Consumer,
        metrics: WorkerMetrics,
        observer: Observer,
        guard: Callable[[Callable[[], None]], None],
        bundle: str = "",
    ) -> None:
        self._consumer = consumer
        self._metrics = metrics
        self._bundle = bundle
        self._observer = observer
        self._waiting: queue.SimpleQueue[Finished | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=guard, args=(self._loop,), name=f"finish-{number}", daemon=True)
            for number in range(THREADS)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def add(self, finished: Finished) -> None:
        """Record this soon."""
        self._waiting.put(finished)

    def close(self) -> None:
        """Record what was added, then end."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _loop(self) -> None:
        while (first := self._waiting.get()) is not None:
            self._record(first)

    def _record(self, first: Finished) -> None:
        began_ns, began_s = time.time_ns(), time.monotonic()
        until = began_s + GATHER_S
        batch, endings = [first], [ending_of(first, self._bundle)]
        while len(batch) < MOST and time.monotonic() < until and (more := self._next()) is not None:
            batch.append(more)
            endings.append(ending_of(more, self._bundle))
        self._consumer.settle(endings)
        self._metrics.finish_seconds.observe(time.monotonic() - began_s)
        for finished, ending in zip(batch, endings, strict=True):
            if finished.task is not None:
                images = finished.task.images
                self._observer.worked("finish", [finished.task], images, began_ns, time.time_ns())
            self._observer.ended(finished.job, "failed" if ending.error_code else "done")

    def _next(self) -> Finished | None:
        """What waits, if anything does."""
        try:
            found = self._waiting.get_nowait()
        except queue.Empty:
            return None
        if found is None:
            self._waiting.put(None)
        return found


def ending_of(finished: Finished, bundle: str = "") -> Ending:
    """What there is to record; `bundle`: as in payloads.Tokens."""
    error = finished.error
    if finished.task is not None:
        try:
            return Ending(finished.job, result_of(finished.task, finished.compute_ms, bundle))
        except Exception:
            job_id = finished.job.id
            log.exception("the result of job %s could not be encoded", job_id, extra=of_job(job_id))
            error = JobFailed("the pictures could not be encoded")
    code = getattr(error, "code", JobFailed.code)
    return Ending(finished.job, error_code=code, error_message=str(error))


def result_of(task: Task, compute_ms: float, bundle: str = "") -> bytes:
    """The payload that a finished task sends back; `bundle`: as in payloads.Tokens."""
    request = task.request
    if isinstance(request, TokenizeJob):
        grids = Tokens.of(np.stack([task.grids[k] for k in range(request.count)]))
        return replace(grids, bundle=bundle).pack()
    files = tuple(_file(task, request.format, k) for k in range(len(task.grids)))
    if isinstance(request, DetokenizeJob):
        return Pictures(files, 0, compute_ms, request.format, bundle=bundle).pack()
    return Pictures(
        files,
        steps=request.sampling.steps,
        compute_ms=compute_ms,
        format=request.format,
        class_ids=request.class_ids,
        seeds=request.seeds,
        forward_passes=forward_passes(request.sampling).total,
        bundle=bundle,
    ).pack()


def _file(task: Task, file_format: str, image: int) -> bytes:
    if file_format == "tokens":
        return tokens_file(task.grids[image])
    if file_format == "npy":
        return npy_file(task.pictures[image])
    return picture_file(task.pictures[image], file_format)
