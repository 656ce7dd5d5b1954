"""Spans of the jobs that a worker runs, with OpenTelemetry; imported only when traces are wanted.

One trace tells one request: `wait` in the queue, then the job with `draw` (an event for each step, which says
how many network rows shared it and how long it took), `decode` or `encode`, and `finish` (files and Redis).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.jobs.job import ClaimedJob
from service.worker.task import Outcome, Stage, Task

_W3C = TraceContextTextMapPropagator()
_NS = 1_000_000


@dataclass
class _Running:
    """The spans of a job that is not through; `draw` begins with the first step."""

    job: Span
    inside: Context
    draw: Span | None = None
    drawn_ns: int = 0


class JobSpans:
    """An observer of a worker. Its thread calls may interleave, those about one job come one by one."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._running: dict[str, _Running] = {}

    def claimed(self, job: ClaimedJob) -> None:
        """An attempt begins: its wait is over."""
        parent = _W3C.extract({"traceparent": job.trace})
        now_ns = time.time_ns()
        wait = self._tracer.start_span("wait", parent, start_time=now_ns - job.age_ms * _NS)
        wait.end(now_ns)
        attributes: dict[str, str | int] = {
            "messaging.system": "redis",
            "messaging.operation.type": "process",
            "messaging.message.id": job.id,
            "maskbit.images": job.rows,
            "maskbit.attempt": job.attempt,
        }
        span = self._tracer.start_span(f"job {job.kind}", parent, SpanKind.CONSUMER, attributes)
        self._running[job.id] = _Running(span, trace.set_span_in_context(span))

    def worked(self, stage: Stage, tasks: Sequence[Task], rows: int, began_ns: int, ended_ns: int) -> None:
        """A batch is done; every job in it took part."""
        for task in tasks:
            running = self._running.get(task.id)
            if running is None or not running.job.is_recording():
                continue
            if stage == "step":
                self._stepped(running, rows, began_ns, ended_ns)
            else:
                attributes = {"maskbit.batch": rows}
                part = self._tracer.start_span(
                    stage, running.inside, attributes=attributes, start_time=began_ns
                )
                part.end(ended_ns)

    def _stepped(self, running: _Running, rows: int, began_ns: int, ended_ns: int) -> None:
        if running.draw is None:
            running.draw = self._tracer.start_span("draw", running.inside, start_time=began_ns)
        milliseconds = (ended_ns - began_ns) / _NS
        running.draw.add_event("step", {"maskbit.rows": rows, "maskbit.ms": milliseconds}, ended_ns)
        running.drawn_ns = ended_ns

    def ended(self, job: ClaimedJob, outcome: Outcome) -> None:
        """This worker is through with the job."""
        running = self._running.pop(job.id, None)
        if running is None:
            return
        if running.draw is not None:
            running.draw.end(running.drawn_ns)
        running.job.set_attribute("maskbit.outcome", outcome)
        if outcome == "failed":
            running.job.set_status(StatusCode.ERROR)
        running.job.end()
