"""Redis, a gateway and several paced workers, as processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from redis import Redis

from models.bundle import open_bundle
from service.bench.paced import PACE
from service.bench.running import READY_TIMEOUT_S, await_answer, free_port
from service.errors import Unavailable
from service.jobs.keys import Keys
from service.jobs.redis_server import RedisServer

_STOP_S = 30.0
_POLL_S = 0.05


@contextmanager
def paced_service(
    workers: int, call_s: float, row_s: float, *, bundle: str, settings: Mapping[str, object]
) -> Iterator[int]:
    """The port of a gateway with so many workers: see `paced.pace`. Raises Unavailable."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="maskbit-bench-")))
        redis = RedisServer(folder / "redis")
        stack.callback(redis.stop)
        redis.start()
        port = free_port()
        values = {**settings, "redis_url": redis.url, "port": port, "bundle": bundle, "runtime": "noop"}
        environment = {f"MASKBIT_{name.upper()}": str(value) for name, value in values.items()}
        environment[PACE] = f"{call_s} {row_s}"
        log = folder / "log"
        for _ in range(workers):
            _start(stack, ["-m", "service.bench.paced"], environment, log)
        gateway = _start(stack, ["-m", "maskbit_cli", "gateway"], environment, log)
        await_answer(port, "GET", "/readyz", gateway, log)
        _await_workers(redis.url, bundle, workers)
        yield port


def _start(
    stack: ExitStack, arguments: Sequence[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    stack.callback(_stop, process)
    return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _await_workers(url: str, ref: str, workers: int) -> None:
    bundle = open_bundle(ref)
    key = Keys(bundle.manifest.name, bundle.revision).workers
    deadline = time.monotonic() + READY_TIMEOUT_S
    with Redis.from_url(url) as redis:
        while redis.zcard(key) < workers:
            if time.monotonic() > deadline:
                raise Unavailable(f"{workers} workers were not ready within {READY_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)
