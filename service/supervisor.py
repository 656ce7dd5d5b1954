"""`maskbit serve`: embedded Redis, a worker for each model, and the gateway; what dies is started again."""

from __future__ import annotations

import http.client
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from models.bundle import open_bundles
from service.errors import Unavailable
from service.jobs.redis_server import RedisServer
from service.parent import SUPERVISED
from service.settings import Settings

log = logging.getLogger(__name__)

CONFIG_ERROR = 2  # exit code of a process whose settings or weights are wrong: starting it again is of no use
POLL_S = 0.2
RESTART_FLOOR_S, RESTART_CEILING_S = 0.5, 10.0
STEADY_S = 30.0  # a part that lived so long starts with a fresh restart delay
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback needs no proxy
GRACE_S = 10.0  # beyond the drain time, before a part is killed


@dataclass
class Part:
    """One supervised process."""

    name: str
    arguments: list[str]
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    delay_s: float = RESTART_FLOOR_S
    restart_at_s: float = 0.0

    def start(self) -> None:
        """Start the process; it ends when this process does, because it reads our pipe."""
        self.started_s = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "maskbit_cli", *self.arguments],
            stdin=subprocess.PIPE,
            env={**os.environ, **self.environment, SUPERVISED: "1"},
            # Ctrl-C reaches the supervisor alone, which stops the parts in order.
            start_new_session=True,
        )

    def watch(self, *, give_up: bool) -> None:
        """Start the process again when it has died; with `give_up`, Unavailable when that is of no use."""
        now = time.monotonic()
        if self.process is None:
            if now >= self.restart_at_s:
                self.start()
            return
        code = self.process.poll()
        if code is None:
            return
        if code == CONFIG_ERROR and give_up:
            raise Unavailable(f"the {self.name} cannot start; its message is above")
        if now - self.started_s > STEADY_S:
            self.delay_s = RESTART_FLOOR_S
        log.warning("the %s ended with code %d; starting it again in %.1f s", self.name, code, self.delay_s)
        self.process, self.restart_at_s = None, now + self.delay_s
        self.delay_s = min(2 * self.delay_s, RESTART_CEILING_S)

    def stop(self, timeout_s: float) -> None:
        """SIGTERM, then SIGKILL after `timeout_s`."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            log.warning("the %s did not end within %.0f s and is killed", self.name, timeout_s)
            self.process.kill()
            self.process.wait()


def serve(settings: Settings, report: Callable[[str], None] = print) -> None:
    """Run everything until SIGINT or SIGTERM. `report` gets the lines for the user.

    Raises BundleError or Unavailable, with one line for the user, when something cannot start.
    """
    started = time.monotonic()
    # Not an Event, which a signal handler must not set while the same thread waits for it.
    stops: queue.SimpleQueue[None] = queue.SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stops.put(None))
    bundles = open_bundles(settings.bundles)
    _check_port(settings)
    with ExitStack() as cleanup:
        redis = None
        if settings.redis_url is None:
            redis = RedisServer(settings.state_dir, outlives_s=settings.drain_s + GRACE_S)
            redis.start()
            cleanup.callback(redis.stop)
        url = settings.redis_url or redis.url  # type: ignore[union-attr]
        names = [bundle.manifest.name for bundle in bundles]
        workers = workers_of(settings, url, names)
        gateway = Part("gateway", ["gateway"], environment_of(settings, url))
        # The gateway stops first, so that what it accepted can still be drawn.
        cleanup.callback(stop_all, workers, settings.drain_s + GRACE_S)
        cleanup.callback(stop_all, [gateway], settings.drain_s + GRACE_S)
        announced = False
        while not _comes(stops, POLL_S):
            if redis is not None and not redis.alive:
                log.warning("the embedded Redis died; starting it again")
                redis.start()
            for part in (*workers, gateway):
                # Once all have been ready, what keeps one from starting may pass, and the others go on.
                part.watch(give_up=not announced)
            if not announced and _ready(settings):
                announced = True
                report(
                    f"Ready after {time.monotonic() - started:.1f} s: http://{settings.host}:{settings.port}"
                )
                for worker in workers if settings.metrics_port else ():
                    port = worker.environment["MASKBIT_METRICS_PORT"]
                    report(f"Metrics of the {worker.name}: http://{settings.host}:{port}/metrics")
        report("Stopping: running jobs are finished first.")


def workers_of(settings: Settings, redis_url: str, names: Sequence[str]) -> list[Part]:
    """A worker for each bundle, the metrics of worker k at the port `metrics_port` + k."""
    parts = []
    for k, (name, bundle) in enumerate(zip(names, settings.bundles, strict=True)):
        port = settings.metrics_port + k if settings.metrics_port else settings.metrics_port
        own = settings.model_copy(update={"bundle": bundle, "metrics_port": port})
        title = f"worker of {name}" if len(names) > 1 else "worker"
        parts.append(Part(title, ["worker"], environment_of(own, redis_url)))
    return parts


def stop_all(parts: Sequence[Part], timeout_s: float) -> None:
    """Stop `parts` at the same time."""
    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(lambda part: part.stop(timeout_s), parts))


def environment_of(settings: Settings, redis_url: str) -> dict[str, str]:
    """Environment variables that give a part the same settings."""
    values = {**settings.model_dump(mode="json", exclude_none=True), "redis_url": redis_url}
    return {f"MASKBIT_{key.upper()}": str(value) for key, value in values.items()}


def _comes(stops: queue.SimpleQueue[None], within_s: float) -> bool:
    """Whether something comes within so many seconds."""
    try:
        stops.get(timeout=within_s)
    except queue.Empty:
        return False
    return True


def _check_port(settings: Settings) -> None:
    """Unavailable when the port is taken, before anything is started."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as exc:
            raise Unavailable(
                f"cannot listen on {settings.host}:{settings.port}: {exc.strerror}; "
                "choose another --host or --port"
            ) from exc


def _ready(settings: Settings) -> bool:
    """Whether every model has a living worker."""
    host = "127.0.0.1" if settings.host == "0.0.0.0" else settings.host
    try:
        with _OPENER.open(f"http://{host}:{settings.port}/readyz", timeout=1) as reply:
            return all(json.load(reply)["models"].values())
    except (http.client.HTTPException, OSError, ValueError, LookupError):
        return False
