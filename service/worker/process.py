"""From settings to a running worker: bundle, runtime, warm-up, metrics, queue (`maskbit worker`)."""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid

import torch
from prometheus_client import start_http_server
from redis import Redis

from models.bundle import open_bundle
from models.runtime.loading import load_runtime
from service.errors import Unavailable
from service.jobs.consumer import Consumer
from service.jobs.keys import Keys
from service.jobs.redis_server import check_settings
from service.settings import Settings
from service.telemetry import WorkerMetrics
from service.worker.worker import Worker, stop_on_signals

log = logging.getLogger(__name__)

REDIS_CHECK_TIMEOUT_S = 2.0


def run_worker(settings: Settings) -> None:
    """Serve jobs until SIGTERM or SIGINT. Weights are loaded and warm before the worker announces itself."""
    if settings.redis_url is None:
        raise Unavailable(
            "a worker needs a Redis: set MASKBIT_REDIS_URL or --redis-url (maskbit serve brings its own)"
        )
    started = time.monotonic()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    bundle = open_bundle(settings.bundle)
    runtime = load_runtime(
        bundle,
        settings.runtime,
        device=settings.device,
        precision=settings.precision,
        strict=settings.deterministic == "strict",
    )
    runtime.warm_up()
    _check_redis(settings.redis_url)
    metrics = WorkerMetrics()
    if settings.metrics_port is not None:
        _serve_metrics(settings, metrics)
    worker_id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    limits = settings.queue_limits()
    keys = Keys(bundle.manifest.name, bundle.revision)
    worker = Worker(
        Consumer(settings.redis_url, keys, worker_id, limits),
        runtime,
        bundle,
        slots=settings.slots,
        lease_s=settings.lease_s,
        drain_s=settings.drain_s,
        metrics=metrics,
    )
    stop_on_signals(worker)
    log.info(
        "worker %s ready with %s on %s after %.1f s",
        worker_id,
        bundle.ref,
        runtime.name,
        time.monotonic() - started,
    )
    worker.run()


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
