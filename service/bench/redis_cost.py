"""`maskbit bench redis`: what Redis does for each picture, and what a waiting job takes of its memory."""

from __future__ import annotations

import base64
import io
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from os import kill
from typing import Any

import numpy as np
from PIL import Image
from redis import Redis

from models.bench import hardware
from models.bundle import open_bundle
from service.bench.client import Target, post_all
from service.bench.running import RunningService, running_service

_PICTURE: dict[str, object] = {"class_id": 0, "seed": 1, "steps": 16, "format": "tokens"}
_DEADLINE_MS = 600_000
_IDLE_S = 2.0
# A worker that is halted must not be given up while jobs are queued.
_LEASE_S = 600


@dataclass(frozen=True)
class Operations:
    """Commands since the server started: those that clients sent, and all, those inside scripts included."""

    sent: int
    carried_out: int
    scripts: int

    def since(self, earlier: Operations) -> Operations:
        """What came between two looks; the look itself is left out."""
        sent = self.sent - earlier.sent - 2
        return Operations(sent, self.carried_out - earlier.carried_out - 2, self.scripts - earlier.scripts)

    def per(self, count: int) -> str:
        """The same for each of `count` pictures."""
        inside = (self.carried_out - self.sent) / count
        scripts = self.scripts / count
        return f"{self.sent / count:6.2f} sent ({scripts:.2f} scripts, {inside:.1f} commands inside)"


def operations(redis: Redis) -> Operations:
    """Counted without watching: Redis reads once for each command, as long as clients await each answer."""
    sent = int(redis.info("stats")["total_reads_processed"])
    commands: Any = redis.info("commandstats")
    calls = sum(stats["calls"] for stats in commands.values())
    return Operations(sent, calls, commands.get("cmdstat_evalsha", {"calls": 0})["calls"])


def bench_redis(*, pictures: int, clients: int, jobs: int, bundle: str = "fruit") -> Iterator[str]:
    """Lines of the report: one client and `clients` with `pictures` each, then `jobs` that wait."""
    yield f"no-op runtime, 16 steps, no events; {hardware()}"
    with running_service("noop", bundle=bundle, settings=_settings(jobs)) as service:
        target = Target(service.port, "/generate", _PICTURE)
        with Redis.from_url(service.redis_url) as redis:
            post_all([target], clients=clients, requests=pictures)
            idle = _idle_per_s(redis)
            yield f"idle               {idle:6.2f} commands a second, of gateway and worker together"
            for count in (1, clients):
                before = operations(redis)
                post_all([target], clients=count, requests=pictures)
                cost = operations(redis).since(before)
                yield f"{count:3d} clients        {cost.per(pictures)} a picture"
            yield from _memory(service, redis, jobs, open_bundle(bundle).manifest.image_size)


def _settings(jobs: int) -> dict[str, object]:
    return {"lease_s": _LEASE_S, "open_jobs": 2 * jobs + 1000, "tenant_jobs": 2 * jobs + 1000}


def _idle_per_s(redis: Redis) -> float:
    before, began = operations(redis), time.monotonic()
    time.sleep(_IDLE_S)
    return operations(redis).since(before).sent / (time.monotonic() - began)


def _memory(service: RunningService, redis: Redis, jobs: int, side: int) -> Iterator[str]:
    """The worker is halted meanwhile, so that whatever is posted waits."""
    picture = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(
        picture, "png"
    )
    image = base64.b64encode(picture.getvalue()).decode()
    orders: dict[str, dict[str, object]] = {
        "generate": {**_PICTURE, "kind": "generate", "deadline_ms": _DEADLINE_MS},
        "tokenize": {"image": image, "kind": "tokenize", "deadline_ms": _DEADLINE_MS},
    }
    kill(service.pids["worker"], signal.SIGSTOP)
    try:
        for kind, order in orders.items():
            target = Target(service.port, "/jobs", order)
            before = _used_bytes(redis)
            post_all([target], clients=4, requests=jobs)
            each = (_used_bytes(redis) - before) / jobs
            size = f" (a picture of {side} x {side} pixels)" if kind == "tokenize" else ""
            yield f"a waiting {kind} job takes {each:8,.0f} bytes of Redis' memory{size}"
    finally:
        kill(service.pids["worker"], signal.SIGCONT)


def _used_bytes(redis: Redis) -> int:
    # Without the buffers of clients and of the append-only file.
    return int(redis.info("memory")["used_memory_dataset"])
