"""`maskbit bench service`: what HTTP, queue and worker cost around a runtime that does nothing.

Starts the real `maskbit serve` with `--runtime noop` on a free loopback port and talks to it over kept-alive
connections from this process, so that client and service share the machine.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from models.bench import hardware
from service.errors import Unavailable

READY_TIMEOUT_S = 60.0
WARM_UP_JOBS = 50
LONE_JOBS = 300
JOB = {"class_id": 0, "seed": 1, "steps": 1, "format": "tokens"}


def bench(*, jobs: int, clients: int) -> Iterator[str]:
    """Lines of the report: time to ready, latency of a lone client, throughput of `clients`."""
    yield f"no-op jobs through one gateway and one worker; {hardware()}"
    with running_service("noop") as (port, ready_s):
        yield f"ready after        {ready_s:8.2f} s"
        _post_many(port, WARM_UP_JOBS)
        lone = sorted(_post_many(port, LONE_JOBS))
        yield f"one client         p50 {_ms(lone, 0.5)} ms, p99 {_ms(lone, 0.99)} ms over {len(lone)} jobs"
        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            shares = [len(range(k, jobs, clients)) for k in range(clients)]
            latencies = sorted(x for part in pool.map(lambda n: _post_many(port, n), shares) for x in part)
        seconds = time.perf_counter() - started
        spread = f"p50 {_ms(latencies, 0.5)} ms, p99 {_ms(latencies, 0.99)} ms"
        yield f"{clients:3d} clients        {jobs / seconds:8.0f} jobs/s, {spread}"


def _ms(ordered: list[float], quantile: float) -> str:
    if len(ordered) < 2:
        return f"{ordered[0] * 1e3:.2f}"
    return f"{statistics.quantiles(ordered, n=100, method='inclusive')[round(quantile * 100) - 1] * 1e3:.2f}"


def _post_many(port: int, count: int) -> list[float]:
    """Seconds of `count` jobs, one after the other on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps(JOB).encode()
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        answer = reply.read()
        seconds.append(time.perf_counter() - started)
        if reply.status != 200:
            raise Unavailable(f"the service answered {reply.status}: {answer[:300].decode(errors='replace')}")
    connection.close()
    return seconds


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_service(runtime: str, bundle: str = "fruit") -> Iterator[tuple[int, float]]:
    """`maskbit serve` in a process of its own: (port, seconds until it was ready)."""
    port, started = free_port(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="maskbit-bench-") as state:
        command = [sys.executable, "-m", "maskbit_cli", "serve", "--port", str(port), "--runtime", runtime]
        process = subprocess.Popen(
            [*command, "--bundle", bundle, "--state-dir", state],
            env={**os.environ, "MASKBIT_METRICS_PORT": "0"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _await_ready(port, process)
            yield port, time.perf_counter() - started
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(READY_TIMEOUT_S)


def _await_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise Unavailable(f"the service was not ready within {READY_TIMEOUT_S:.0f} s")
