"""The real service for a benchmark: `maskbit serve` on a loopback port with a Redis of its own."""

from __future__ import annotations

import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from redis import Redis

from service.errors import Unavailable
from service.jobs.redis_server import RedisServer

Durability = Literal["always", "everysec", "off"]

READY_TIMEOUT_S = 60.0
_POLL_S = 0.05
_QUIET_PORTS = (10_000, 30_000)
_PARTS = ("gateway", "worker")


@dataclass(frozen=True)
class RunningService:
    """A service that answers. `pids`: those of `gateway`, `worker` and `redis`."""

    port: int
    ready_s: float
    redis_url: str
    pids: Mapping[str, int]


def free_port() -> int:
    """A loopback port that nobody listens on.

    None that the system might give to somebody's outgoing connection before it is used.
    """
    while True:
        port = random.randrange(*_QUIET_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def running_service(
    runtime: str,
    *,
    bundle: str = "fruit",
    durability: Durability = "always",
    settings: Mapping[str, object] | None = None,
) -> Iterator[RunningService]:
    """`maskbit serve`; `durability` is what Redis does with its append-only file, `settings` those of ours.

    Raises Unavailable when it does not get ready.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="maskbit-bench-") as folder:
        redis = RedisServer(Path(folder) / "redis")
        redis.start()
        try:
            set_durability(redis.url, durability)
            values = {"metrics_port": 0, **(settings or {}), "bundle": bundle, "runtime": runtime}
            with _serving(Path(folder) / "log", redis.url, values) as (port, pid):
                ready_s = time.perf_counter() - started
                pids = {**_pids_of_parts(pid), "redis": redis.pid or 0}
                yield RunningService(port, ready_s, redis.url, pids)
        finally:
            redis.stop()


def set_durability(url: str, durability: Durability) -> None:
    """When the Redis at `url` writes its append-only file through to the disk, or that it keeps none."""
    with Redis.from_url(url) as redis:
        if durability == "off":
            redis.config_set("appendonly", "no")
        else:
            redis.config_set("appendfsync", durability)


@contextmanager
def _serving(log: Path, redis_url: str, settings: Mapping[str, object]) -> Iterator[tuple[int, int]]:
    port = free_port()
    environment = {f"MASKBIT_{name.upper()}": str(value) for name, value in settings.items()}
    environment |= {"MASKBIT_REDIS_URL": redis_url, "MASKBIT_PORT": str(port)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "maskbit_cli", "serve"],
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        await_answer(port, "GET", "/readyz", process, log)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(READY_TIMEOUT_S)


def await_answer(
    port: int, method: str, path: str, process: subprocess.Popen[bytes], log: Path, body: bytes | None = None
) -> None:
    """Return when a server answers 200. Raises Unavailable, with the end of `log`, if it does not."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(_POLL_S)
    lines = log.read_text(errors="replace").splitlines()[-5:]
    raise Unavailable(
        f"the server was not ready within {READY_TIMEOUT_S:.0f} s; it wrote last: " + " | ".join(lines)
    )


def _pids_of_parts(supervisor: int) -> dict[str, int]:
    import psutil

    children = psutil.Process(supervisor).children()
    return {part: child.pid for part in _PARTS for child in children if child.cmdline()[-1] == part}
