"""`maskbit bench redis`: what Redis does for each picture, and what a waiting job takes of its memory."""

from __future__ import annotations

import base64
import io
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from os import kill

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
_END = "end"
# A worker that is halted must not be given up while jobs are queued.
_LEASE_S = 600


@dataclass(frozen=True)
class Operations:
    """Commands that clients sent, how many of these were scripts, and commands that scripts carried out."""

    sent: int
    scripts: int
    inside: int

    def per(self, count: int) -> str:
        """The same for each of `count` pictures."""
        scripts, inside = self.scripts / count, self.inside / count
        return f"{self.sent / count:6.2f} sent ({scripts:.2f} scripts, {inside:.1f} commands inside)"


def operations(redis: Redis, work: Callable[[], object]) -> Operations:
    """What Redis does during `work`, as MONITOR tells; it leaves out administrative commands."""
    counts: Counter[str] = Counter()
    with redis.monitor() as monitor:  # type: ignore[no-untyped-call]
        work()
        redis.echo(_END)
        while (command := monitor.next_command())["command"] != f"ECHO {_END}":
            from_script = command["client_type"] == "lua"
            counts["inside" if from_script else "sent"] += 1
            counts["scripts"] += command["command"].startswith("EVAL")
    return Operations(counts["sent"], counts["scripts"], counts["inside"])


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
                cost = operations(redis, partial(post_all, [target], clients=count, requests=pictures))
                yield f"{count:3d} clients        {cost.per(pictures)} a picture"
            yield from _memory(service, redis, jobs, open_bundle(bundle).manifest.image_size)


def _settings(jobs: int) -> dict[str, object]:
    return {"lease_s": _LEASE_S, "open_jobs": 2 * jobs + 1000, "tenant_jobs": 2 * jobs + 1000}


def _idle_per_s(redis: Redis) -> float:
    return operations(redis, lambda: time.sleep(_IDLE_S)).sent / _IDLE_S


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
