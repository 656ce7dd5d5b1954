"""Prometheus metrics of gateway and worker: every name and label set is defined here."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from time import monotonic

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from service.errors import (
    DeadlineUnmeetable,
    NoWorker,
    QueueFull,
    QuotaExceeded,
    RateLimited,
    ServiceError,
    TenantLimit,
    TooManyFailedKeys,
    Unavailable,
)
from service.jobs.job import CANCELLED, DONE, ERROR, EXPIRED, KINDS, Depth, JobView

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_HTTP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_JOB_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_STEP_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS"})
_OUTCOMES = {DONE: "done", ERROR: "failed", CANCELLED: "cancelled", EXPIRED: "expired"}
_REASONS = (
    *(QueueFull, Unavailable, DeadlineUnmeetable),
    *(RateLimited, QuotaExceeded, TenantLimit, TooManyFailedKeys),
)


class GatewayMetrics:
    """Metrics of one gateway process that serves `models`, in a registry of their own."""

    def __init__(self, models: Iterable[str]) -> None:
        self.registry = registry = CollectorRegistry()
        self._http_requests = Counter(
            "maskbit_http_requests", "HTTP answers", ["route", "method", "code"], registry=registry
        )
        self._http_seconds = Histogram(
            "maskbit_http_request_seconds",
            "Time from the headers to the end of the answer",
            ["route"],
            buckets=_HTTP_BUCKETS,
            registry=registry,
        )
        self._queue_wait = Histogram(
            "maskbit_queue_wait_seconds",
            "Time from acceptance to the last start of a job",
            ["model", "kind"],
            buckets=_JOB_BUCKETS,
            registry=registry,
        )
        self._request_seconds = Histogram(
            "maskbit_request_seconds",
            "Time from acceptance to the end of a job",
            ["model", "kind", "outcome"],
            buckets=_JOB_BUCKETS,
            registry=registry,
        )
        self._queue_depth = Gauge(
            "maskbit_queue_depth", "Jobs that wait in a queue", ["model", "kind"], registry=registry
        )
        self._oldest_age = Gauge(
            "maskbit_oldest_job_age_seconds",
            "Age of the oldest job of a queue",
            ["model", "kind"],
            registry=registry,
        )
        self._dead_letters = Gauge(
            "maskbit_dead_letters", "Poisoned jobs that are kept to be read", ["model"], registry=registry
        )
        self._workers = Gauge(
            "maskbit_workers", "Living workers that take new jobs", ["model"], registry=registry
        )
        self._redis_up = Gauge("maskbit_redis_up", "1 when Redis answered just now", registry=registry)
        self._jobs = Counter(
            "maskbit_jobs", "Accepted jobs that ended", ["model", "kind", "outcome"], registry=registry
        )
        self._shed = Counter("maskbit_shed", "Requests turned away", ["reason"], registry=registry)
        self._no_worker = Counter(
            "maskbit_no_worker",
            "Requests for a model turned away since no worker of it was alive",
            ["model"],
            registry=registry,
        )
        self._failed_keys = Counter("maskbit_failed_keys", "Requests with a wrong API key", registry=registry)
        self._begin_at_zero(models)

    def _begin_at_zero(self, models: Iterable[str]) -> None:
        """Show what may be counted: Prometheus sees no increase from nothing to one."""
        for model in models:
            self._no_worker.labels(model)
            for kind, outcome in product(KINDS, _OUTCOMES.values()):
                self._jobs.labels(model, kind, outcome)
        for reason in _REASONS:
            self._shed.labels(reason.code)

    def http(self, route: str, method: str, code: int, seconds: float) -> None:
        """One HTTP exchange; `route` is a template, never a path."""
        self._http_requests.labels(route, method if method in _METHODS else "other", str(code)).inc()
        self._http_seconds.labels(route).observe(seconds)

    def job_ended(self, model: str, view: JobView) -> None:
        """A job that this gateway accepted for `model` is terminal."""
        outcome = _OUTCOMES[view.state]
        self._jobs.labels(model, view.kind, outcome).inc()
        seconds = _seconds(view.created_ms, view.finished_ms)
        self._request_seconds.labels(model, view.kind, outcome).observe(seconds)
        if view.started_ms:
            seconds = _seconds(view.created_ms, view.started_ms)
            self._queue_wait.labels(model, view.kind).observe(seconds)

    def shed(self, reason: ServiceError) -> None:
        """A request was turned away."""
        self._shed.labels(reason.code).inc()
        if isinstance(reason, NoWorker):
            self._no_worker.labels(reason.model).inc()

    def key_failed(self) -> None:
        """A request came with a wrong API key."""
        self._failed_keys.inc()

    def queues(self, looks: Sequence[tuple[str, Depth, int] | None]) -> None:
        """What is there now: model, queues and living workers of each revision, None where Redis is away.

        Revisions of one model count together; nothing is told of a model without a look.
        """
        self._redis_up.set(None not in looks)
        for gauge in (self._queue_depth, self._oldest_age, self._dead_letters, self._workers):
            gauge.clear()
        oldest_s: dict[tuple[str, str], float] = defaultdict(float)
        for model, depth, workers in filter(None, looks):
            self._dead_letters.labels(model).inc(depth.dead)
            self._workers.labels(model).inc(workers)
            for kind, one in depth.queues.items():
                self._queue_depth.labels(model, kind).inc(one.waiting)
                oldest_s[model, kind] = max(oldest_s[model, kind], one.oldest_age_s)
        for labels, age_s in oldest_s.items():
            self._oldest_age.labels(*labels).set(age_s)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)


class WorkerMetrics:
    """Metrics of one worker process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        registry.register(_Lifetime())
        self.busy_seconds = Counter(
            "maskbit_busy_seconds", "Time in calls of the network", ["stage"], registry=registry
        )
        for stage in ("step", "encode", "decode"):
            self.busy_seconds.labels(stage)
        self.step_seconds = _histogram(
            registry, "maskbit_step_seconds", "One sampling step", _STEP_BUCKETS, ["bucket"]
        )
        self.step_rows = _histogram(
            registry, "maskbit_step_rows", "Pictures in a sampling step", _ROW_BUCKETS
        )
        self.network_rows = Counter(
            "maskbit_network_rows",
            "Network rows of sampling steps, two for a guided picture",
            registry=registry,
        )
        self.bucket_rows = Counter(
            "maskbit_bucket_rows", "The same with the rows that they were padded with", registry=registry
        )
        self.slots_active = Gauge(
            "maskbit_slots_active",
            "Slots taken; a picture without guidance takes half a one",
            registry=registry,
        )
        self.slots_total = Gauge(
            "maskbit_slots_total", "Pictures with guidance that fit at a time", registry=registry
        )
        self.encode_seconds = _histogram(
            registry, "maskbit_encode_seconds", "One batch of pictures to tokens", _STEP_BUCKETS
        )
        self.decode_seconds = _histogram(
            registry, "maskbit_decode_seconds", "One batch of tokens to pictures", _STEP_BUCKETS
        )
        self.finish_seconds = _histogram(
            registry, "maskbit_finish_seconds", "Results made into files and recorded together", _STEP_BUCKETS
        )
        self.images = Counter("maskbit_images", "Pictures drawn", registry=registry)
        self.steps_saved = Counter(
            "maskbit_steps_saved", "Steps not run since a job was cancelled or expired", registry=registry
        )
        self.rows_saved = Counter(
            "maskbit_rows_saved", "Network rows of these steps, with guidance", registry=registry
        )
        self.redeliveries = Counter(
            "maskbit_redeliveries", "Jobs taken over after a lost attempt", registry=registry
        )
        self.model_info = Gauge(
            "maskbit_model_info",
            "1 for what is loaded",
            ["bundle", "runtime", "precision"],
            registry=registry,
        )
        self.gpu_memory = Gauge(
            "maskbit_gpu_memory_bytes", "GPU memory that this process holds", registry=registry
        )

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)


class _Lifetime:
    """For how long this worker has had its device, weights loaded or not: what it is paid for."""

    def __init__(self) -> None:
        self._since_s = monotonic()

    def collect(self) -> Iterator[CounterMetricFamily]:
        lived_s = monotonic() - self._since_s
        yield CounterMetricFamily("maskbit_worker_seconds", "Time since this worker began", value=lived_s)


def _histogram(
    registry: CollectorRegistry, name: str, text: str, buckets: Iterable[float], labels: Iterable[str] = ()
) -> Histogram:
    return Histogram(name, text, tuple(labels), buckets=tuple(buckets), registry=registry)


def _seconds(start_ms: int, end_ms: int) -> float:
    return max(0, end_ms - start_ms) / 1000
