"""`maskbit serve`: embedded Redis, worker and gateway as one; a part that dies is started again."""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from models.bundle import open_bundle
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

    def watch(self) -> None:
        """Start the process again when it has died; Unavailable when that is of no use."""
        now = time.monotonic()
        if self.process is None:
            if now >= self.restart_at_s:
                self.start()
            return
        code = self.process.poll()
        if code is None:
            return
        if code == CONFIG_ERROR:
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
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    open_bundle(settings.bundle)
    _check_port(settings)
    with ExitStack() as cleanup:
        redis = None
        if settings.redis_url is None:
            redis = RedisServer(settings.state_dir)
            redis.start()
            cleanup.callback(redis.stop)
        url = settings.redis_url or redis.url  # type: ignore[union-attr]
        environment = environment_of(settings, url)
        worker = Part("worker", ["worker"], environment)
        gateway = Part("gateway", ["gateway"], environment)
        # The gateway stops first, so that what it accepted can still be drawn.
        cleanup.callback(worker.stop, settings.drain_s + GRACE_S)
        cleanup.callback(gateway.stop, settings.drain_s + GRACE_S)
        announced = False
        while not stopping.wait(POLL_S):
            if redis is not None and not redis.alive:
                log.warning("the embedded Redis died; starting it again")
                redis.start()
            worker.watch()
            gateway.watch()
            if not announced and _ready(settings):
                announced = True
                report(
                    f"Ready after {time.monotonic() - started:.1f} s: http://{settings.host}:{settings.port}"
                )
        report("Stopping: running jobs are finished first.")


def environment_of(settings: Settings, redis_url: str) -> dict[str, str]:
    """Environment variables that give a part the same settings."""
    values = {**settings.model_dump(mode="json", exclude_none=True), "redis_url": redis_url}
    return {f"MASKBIT_{key.upper()}": str(value) for key, value in values.items()}


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
    host = "127.0.0.1" if settings.host == "0.0.0.0" else settings.host
    try:
        with _OPENER.open(f"http://{host}:{settings.port}/readyz", timeout=1) as reply:
            return bool(json.load(reply).get("ready"))
    except (http.client.HTTPException, OSError, ValueError):
        return False
