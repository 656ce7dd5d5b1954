"""From settings to a running worker: probes, bundle, runtime, warm-up, queue (`maskbit worker`)."""

from __future__ import annotations

import logging
import os
import signal

from redis import Redis

from models.errors import ConfigError
from service.errors import Unavailable
from service.jobs.redis_server import check_settings
from service.settings import Settings
from service.telemetry import WorkerMetrics
from service.tracing import open_tracer
from service.worker.probes import Probes
from service.worker.succession import Succession
from service.worker.task import Observer

log = logging.getLogger(__name__)

REDIS_CHECK_TIMEOUT_S = 2.0


def run_worker(settings: Settings) -> None:
    """Serve jobs until SIGTERM or SIGINT. Weights are loaded and warm before the worker announces itself.

    Where a metrics port is set, it answers there from the start and tells when it is ready.
    """
    if settings.redis_url is None:
        raise Unavailable(
            "a worker needs a Redis: set MASKBIT_REDIS_URL or --redis-url (maskbit serve brings its own)"
        )
    if len(settings.bundles) != 1:
        raise ConfigError(
            f"a worker serves one bundle, got {settings.bundle!r}; start one worker for each bundle"
        )
    _end_while_loading()
    metrics = WorkerMetrics()
    probes = Probes(metrics)
    if settings.metrics_port is not None:
        _listen(probes, settings.host, settings.metrics_port)
    succession = Succession(settings, metrics, _observer())
    _check_redis(settings.redis_url)
    _obey_signals(succession)
    probes.follow(succession.readiness)
    succession.run()


def _end_while_loading() -> None:
    """SIGTERM ends the process at once, since nothing is held yet.

    Without a handler the first process of a container does not hear it.
    """
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))


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


def _listen(probes: Probes, host: str, port: int) -> None:
    try:
        probes.listen(host, port)
    except OSError as exc:
        raise Unavailable(
            f"cannot listen on {host}:{port} for metrics and probes: {exc.strerror}; "
            "choose another MASKBIT_METRICS_PORT"
        ) from exc
