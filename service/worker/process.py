"""From settings to a running worker: bundle, runtime, warm-up, metrics, queue (`maskbit worker`)."""

from __future__ import annotations

import logging
import signal

from prometheus_client import start_http_server
from redis import Redis

from models.errors import ConfigError
from service.errors import Unavailable
from service.jobs.redis_server import check_settings
from service.settings import Settings
from service.telemetry import WorkerMetrics
from service.tracing import open_tracer
from service.worker.succession import Succession
from service.worker.task import Observer

log = logging.getLogger(__name__)

REDIS_CHECK_TIMEOUT_S = 2.0


def run_worker(settings: Settings) -> None:
    """Serve jobs until SIGTERM or SIGINT. Weights are loaded and warm before the worker announces itself."""
    if settings.redis_url is None:
        raise Unavailable(
            "a worker needs a Redis: set MASKBIT_REDIS_URL or --redis-url (maskbit serve brings its own)"
        )
    if len(settings.bundles) != 1:
        raise ConfigError(
            f"a worker serves one bundle, got {settings.bundle!r}; start one worker for each bundle"
        )
    metrics = WorkerMetrics()
    succession = Succession(settings, metrics, _observer())
    _check_redis(settings.redis_url)
    if settings.metrics_port is not None:
        _serve_metrics(settings, metrics)
    _obey_signals(succession)
    succession.run()


def _obey_signals(succession: Succession) -> None:
    """SIGTERM and SIGINT drain, a second one ends the process at once. SIGHUP looks for a new revision."""

    def drain(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        log.info("draining after %s", signal.Signals(number).name)
        succession.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, drain)
    signal.signal(signal.SIGHUP, lambda *_: succession.look_now())


def _observer() -> Observer | None:
    tracer = open_tracer("maskbit-worker")
    if tracer is None:
        return None
    from service.worker.job_spans import JobSpans

    return JobSpans(tracer)


def _check_redis(url: str) -> None:
    with Redis.from_url(url, socket_timeout=REDIS_CHECK_TIMEOUT_S) as redis:
        for warning in check_settings(redis):
            log.warning("%s", warning)


def _serve_metrics(settings: Settings, metrics: WorkerMetrics) -> None:
    assert settings.metrics_port is not None
    try:
        start_http_server(settings.metrics_port, settings.host, registry=metrics.registry)
    except OSError as exc:
        log.warning("no worker metrics on port %d: %s", settings.metrics_port, exc.strerror)
