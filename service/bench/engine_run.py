"""An engine in this process under an open loop of requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from models.bundle import Manifest
from models.drawing import generator_of
from models.errors import MaskBitError
from models.runtime.base import Pixels, Runtime
from service.bench.arrivals import Arrival, Outcome
from service.jobs.payloads import GenerateJob
from service.telemetry import WorkerMetrics
from service.worker.engine import Engine
from service.worker.scheduler import Row, SlotTable
from service.worker.task import Task

_IDLE_WAIT_S = 1.0


class _Clerk:
    """Notes when the engine completes each task."""

    def __init__(self) -> None:
        self.done_s: dict[str, float] = {}
        self.error: MaskBitError | None = None

    def progressed(self, task: Task, row: Row, preview: Pixels | None) -> None:
        """Nobody follows."""

    def completed(self, task: Task) -> None:
        """The pictures are there."""
        self.done_s[task.id] = time.perf_counter()

    def failed(self, task: Task, error: MaskBitError) -> None:
        """No request of a benchmark may fail."""
        self.error = error


def run_engine(
    runtime: Runtime, manifest: Manifest, table: SlotTable, arrivals: Sequence[Arrival]
) -> Outcome:
    """Draw and decode all `arrivals` with an engine scheduled by `table`. Raises what a task failed with."""
    clerk = _Clerk()
    engine = Engine(runtime, manifest, table, clerk, WorkerMetrics())
    began = time.perf_counter()
    source = threading.Thread(target=_submit, args=(engine, manifest, arrivals, began), daemon=True)
    source.start()
    while len(clerk.done_s) < len(arrivals):
        if clerk.error is not None:
            raise clerk.error
        engine.wait_for_work(_IDLE_WAIT_S)
        engine.turn()
    source.join()
    latencies = {one: clerk.done_s[str(one.number)] - began - one.at_s for one in arrivals}
    return Outcome(latencies, max(clerk.done_s.values()) - began)


def _submit(engine: Engine, manifest: Manifest, arrivals: Sequence[Arrival], began: float) -> None:
    classes = generator_of(manifest).nclass
    for one in arrivals:
        time.sleep(max(0.0, began + one.at_s - time.perf_counter()))
        sampling = replace(manifest.sampling, steps=one.steps)
        job = GenerateJob((one.number % classes,), (one.number,), sampling, format="npy")
        engine.submit(Task(str(one.number), job))
