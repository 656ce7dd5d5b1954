"""Makes workers: their runtime chosen, their weights loaded and warm."""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from dataclasses import replace

from models.bundle import Bundle
from models.errors import RuntimeUnavailable
from models.runtime.base import Runtime
from models.runtime.devices import CPU, CUDA
from models.runtime.loading import TRITON, Choice, Wish, choose_runtime
from service.jobs.consumer import Consumer
from service.jobs.keys import Keys
from service.settings import Settings
from service.telemetry import WorkerMetrics
from service.worker.orphans import Orphan
from service.worker.scheduler import SlotTable
from service.worker.task import Observer
from service.worker.worker import Worker

log = logging.getLogger(__name__)


class WorkerLoader:
    """Loads the workers of one process, of any revision. Each method raises MaskBitError when it cannot."""

    def __init__(self, settings: Settings, metrics: WorkerMetrics, observer: Observer | None) -> None:
        self._settings = settings
        self._metrics = metrics
        self._observer = observer
        self._told: set[str] = set()

    def load(self, bundle: Bundle) -> Worker:
        """The first worker."""
        consumer = self._consumer(bundle, bundle.revision)
        return self._worker(bundle, consumer, self._settings.runtime, self._wish())

    def load_successor(self, bundle: Bundle, former: Worker) -> Worker:
        """One that takes over from `former`. RuntimeUnavailable if it would be slower for good."""
        consumer = self._consumer(bundle, bundle.revision)
        return self._worker(bundle, consumer, *self._wish_beside(former), former=former)

    def load_heir(self, bundle: Bundle, former: Worker, orphan: Orphan) -> Worker:
        """One beside `former`, with the same weights, for the jobs of `orphan`."""
        consumer = self._consumer(bundle, orphan.revision)
        # Before it is loaded, so that one heir is loaded and not one in each process.
        consumer.leave()
        return self._worker(bundle, consumer, *self._wish_beside(former), orphan=orphan)

    def _consumer(self, bundle: Bundle, revision: str) -> Consumer:
        assert self._settings.redis_url is not None
        worker_id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        keys = Keys(bundle.manifest.name, revision)
        return Consumer(self._settings.redis_url, keys, worker_id, self._settings.queue_limits())

    def _worker(
        self,
        bundle: Bundle,
        consumer: Consumer,
        kind: str,
        wish: Wish,
        *,
        former: Worker | None = None,
        orphan: Orphan | None = None,
    ) -> Worker:
        started, settings = time.monotonic(), self._settings
        choice = choose_runtime(bundle, kind, wish)
        self._tell(choice)
        if former is not None:
            _check_rows(choice.runtime, former)
        worker = Worker(
            consumer,
            choice.runtime,
            bundle,
            table=SlotTable(settings.slots),
            lease_s=settings.lease_s,
            drain_s=settings.drain_s,
            metrics=self._metrics,
            observer=self._observer,
            heir_of=orphan.manifest if orphan else None,
            passed_over=choice.passed_over,
            call_limit_s=self._call_limit_s(choice.runtime),
        )
        seconds, name = time.monotonic() - started, choice.runtime.name
        log.info("worker %s ready with %s on %s after %.1f s", consumer.worker_id, bundle.ref, name, seconds)
        return worker

    def _wish(self) -> Wish:
        settings = self._settings
        return Wish(
            device=settings.device,
            precision=settings.precision,
            strict=settings.deterministic == "strict",
            threads=settings.threads,
            triton_url=settings.triton_url,
            triton_timeout_s=settings.triton_timeout_s,
            triton_deadline_s=settings.triton_deadline_s,
        )

    def _wish_beside(self, former: Worker) -> tuple[str, Wish]:
        """The runtime to load, and how: after one by a server or a GPU, no other kind will do.

        Memory may not suffice for two revisions, but one that took over on a CPU would stay there.
        """
        wish = self._wish()
        if former.info.runtime == TRITON:
            return TRITON, wish
        if former.info.device.startswith(CUDA):
            wish = replace(wish, device=former.info.device)
        return self._settings.runtime, wish

    def _call_limit_s(self, runtime: Runtime) -> float:
        """How long a call waits for a server, and the try that is under way at the end."""
        if runtime.name != TRITON:
            return 0.0
        return self._settings.triton_deadline_s + self._settings.triton_timeout_s

    def _tell(self, choice: Choice) -> None:
        """Log why better runtimes were passed over, each reason once in a process."""
        # A GPU that is not used is no small matter.
        unused = choice.runtime.device_name == CPU and any(f" on {CUDA}" in one for one in choice.passed_over)
        for reason in choice.passed_over:
            if reason not in self._told:
                self._told.add(reason)
                log.log(logging.WARNING if unused else logging.INFO, "passed over: %s", reason)


def _check_rows(runtime: Runtime, former: Worker) -> None:
    """Raise RuntimeUnavailable if a runtime on a GPU found less memory than that of `former` did."""
    rows, most = runtime.buckets[-1], former.engine.runtime.buckets[-1]
    if former.info.device.startswith(CUDA) and rows < most:
        raise RuntimeUnavailable(
            f"beside {former.info.bundle} there is memory for {rows} rows at a time, not for {most} as "
            "there has been; free some, or start the worker anew"
        )
