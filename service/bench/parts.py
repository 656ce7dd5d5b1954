"""`maskbit bench parts`: what requests, workers and gateways cost Redis and the gateway, for `maskbit plan`.

Processor seconds, not waiting: of Redis' main thread, which runs all commands, and of the gateway's process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from redis import Redis

from models.bench import hardware
from service.bench.client import Target, post_all
from service.bench.out_file import prepare
from service.bench.redis_cost import operations
from service.bench.running import RunningService, running_service
from service.errors import Unavailable
from service.jobs.consumer import Consumer
from service.jobs.job import QueueLimits
from service.jobs.keys import GROUP, Keys
from service.jobs.redis_server import RedisServer
from service.jobs.speed import Speed
from service.plan.load import Flow
from service.plan.part_costs import PartCosts

_SMALL: dict[str, object] = {"class_id": 0, "seed": 1, "steps": 1, "format": "tokens"}
# As large as several files of pictures are together.
_LARGE_IMAGES = 8
_WORKERS = (1, 1000)
_ANNOUNCEMENTS, _ARRIVALS = 300, 1000
_DEADLINE_MS = 600_000
_LOOKS = 10
_RESULT_S = 20.0
_SETTLE_S = 2.0
_JOBS = "maskbit:*:j:*"
_INFO = {"slots": 16, "rows_per_s": 900.0, "step_s": 0.01, "images_per_s": 90.0, "codec_s": 0.01, "pid": 1}


@dataclass(frozen=True)
class Cost:
    """Of one request: processor seconds, bytes on the network and disk of Redis, bytes of its result."""

    redis_s: float
    gateway_s: float
    network: float
    disk: float
    result: float


def bench_parts(*, requests: int, clients: int, jobs: int, seconds: float, out: Path | None) -> Iterator[str]:
    """Lines of the report; `requests` by `clients` of each kind, `jobs` that wait, `seconds` of rest."""
    if out is not None:
        prepare(out)
    costs = measure(requests, clients, jobs, seconds)
    yield f"no-op runtime, {clients} clients; {costs.hardware}"
    yield from lines_of(costs)
    if out is not None:
        costs.save(out)
        yield f"written to {out}"


def lines_of(costs: PartCosts) -> Iterator[str]:
    """The costs in handy units."""
    rows = (
        ("a request", "Redis", 1e6 * costs.request_redis_s, "µs"),
        ("", "gateway", 1e6 * costs.request_gateway_s, "µs"),
        ("", "commands sent", costs.request_commands, ""),
        ("", "commands inside scripts", costs.request_inside, ""),
        ("", "network of Redis", costs.request_bytes, "bytes"),
        ("", "disk of Redis", costs.request_disk_bytes, "bytes"),
        ("a kB of result", "Redis", 1e9 * costs.byte_redis_s, "µs"),
        ("", "gateway", 1e9 * costs.byte_gateway_s, "µs"),
        ("", "network of Redis", 1e3 * costs.byte_bytes, "bytes"),
        ("a waiting job", "memory of Redis", costs.waiting_bytes, "bytes"),
        ("an idle worker", "commands a second", costs.worker_commands, ""),
        ("", "Redis, a second", 1e6 * costs.worker_redis_s, "µs"),
        ("an idle gateway", "commands a second", costs.gateway_commands, ""),
        ("", "Redis, a second", 1e6 * costs.gateway_redis_s, "µs"),
        ("a waiting reader", "Redis, an arrival", 1e6 * costs.reader_redis_s, "µs"),
        ("an announcement", "Redis", 1e6 * costs.announce_redis_s, "µs"),
        ("", "Redis, a worker more", 1e6 * costs.announce_each_redis_s, "µs"),
        ("a living worker", "gateway, a second", 1e6 * costs.look_gateway_s, "µs"),
        ("", "Redis, a second and gateway", 1e6 * costs.look_redis_s, "µs"),
    )
    for what, part, value, unit in rows:
        yield f"{what:18}{part:26}{value:12,.2f} {unit}".rstrip()


def measure(requests: int, clients: int, jobs: int, seconds: float) -> PartCosts:
    """All of it, by services and Redis servers of its own."""
    settings = {"lease_s": 600, "open_jobs": 2 * jobs + 1000, "tenant_jobs": 2 * jobs + 1000}
    with running_service("noop", settings=settings) as service, Redis.from_url(service.redis_url) as redis:
        redis.config_set("auto-aof-rewrite-percentage", 0)
        small = Target(service.port, "/generate", _SMALL)
        post_all([small], clients=clients, requests=requests)
        with _halted(service.pids["gateway"]):
            with _halted(service.pids["worker"]):
                _, nobody_s = _idle(service, redis, seconds)
            worker, worker_s = _idle(service, redis, seconds)
        both, both_s = _idle(service, redis, seconds)
        one = _cost(service, redis, _SMALL, requests, clients)
        big = _cost(service, redis, {**_SMALL, "format": "npy", "n": _LARGE_IMAGES}, requests, clients)
        counted = operations(redis, lambda: post_all([small], clients=clients, requests=requests))
        waiting = _waiting_bytes(service, redis, jobs)
        version = _info(redis, "server")["redis_version"]
    reader_s, (announce_s, each_s) = _reader_s(), _announce_s()
    look_s, look_redis_s = _look_s()
    more = big.result - one.result
    return PartCosts(
        hardware=f"{os.cpu_count()} cores, {hardware()}, Redis {version}",
        source="maskbit bench parts",
        request_commands=counted.sent / requests,
        request_inside=counted.inside / requests,
        request_redis_s=one.redis_s,
        byte_redis_s=max(0.0, (big.redis_s - one.redis_s) / more),
        request_gateway_s=one.gateway_s,
        byte_gateway_s=max(0.0, (big.gateway_s - one.gateway_s) / more),
        request_bytes=one.network,
        byte_bytes=(big.network - one.network) / more,
        request_disk_bytes=one.disk - Flow(rate=1.0, result_bytes=one.result).written_bytes,
        waiting_bytes=waiting,
        worker_commands=worker,
        worker_redis_s=max(0.0, worker_s - nobody_s),
        gateway_commands=max(0.0, both - worker),
        gateway_redis_s=max(0.0, both_s - worker_s),
        reader_redis_s=reader_s,
        announce_redis_s=announce_s,
        announce_each_redis_s=each_s,
        look_gateway_s=look_s,
        look_redis_s=look_redis_s,
    )


def main_thread_s(pid: int) -> float:
    """Processor seconds of the main thread of a process."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _process_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def _info(redis: Redis, section: str) -> dict[str, Any]:
    found: Any = redis.info(section)
    return dict(found)


def network(redis: Redis) -> int:
    """Bytes that went in and out."""
    stats = _info(redis, "stats")
    return int(stats["total_net_input_bytes"]) + int(stats["total_net_output_bytes"])


def written(redis: Redis) -> int:
    """Bytes of the append-only file, which must not have been rewritten meanwhile."""
    return int(_info(redis, "persistence")["aof_current_size"])


def _cost(
    service: RunningService, redis: Redis, body: dict[str, object], requests: int, clients: int
) -> Cost:
    target, pids = Target(service.port, "/generate", body), service.pids
    post_all([target], clients=clients, requests=max(1, requests // 10))
    before = _spent(pids, redis)
    post_all([target], clients=clients, requests=requests)
    each = [(now - earlier) / requests for now, earlier in zip(_spent(pids, redis), before, strict=True)]
    redis_s, gateway_s, network, disk = each
    return Cost(redis_s, gateway_s, network, disk, _result_bytes(redis, target))


def _spent(pids: Mapping[str, int], redis: Redis) -> tuple[float, float, int, int]:
    return main_thread_s(pids["redis"]), _process_s(pids["gateway"]), network(redis), written(redis)


def _result_bytes(redis: Redis, target: Target) -> float:
    """Bytes of a result as it is kept: an answer in JSON is larger. Raises Unavailable if none comes."""
    known = set(redis.scan_iter(_JOBS))
    body = {**target.body, "kind": "generate", "deadline_ms": _DEADLINE_MS}
    post_all([Target(target.port, "/jobs", body)], clients=1, requests=1)
    give_up = time.monotonic() + _RESULT_S
    while time.monotonic() < give_up:
        for name in set(redis.scan_iter(_JOBS)) - known:
            size: Any = redis.hstrlen(name, "result")
            if size:
                return float(size)
        time.sleep(0.01)
    raise Unavailable(f"the result of a background job did not come within {_RESULT_S:g} s")


def _idle(service: RunningService, redis: Redis, seconds: float) -> tuple[float, float]:
    """Commands and processor seconds of Redis, each second."""
    before = main_thread_s(service.pids["redis"])
    time.sleep(seconds)
    spent = (main_thread_s(service.pids["redis"]) - before) / seconds
    counted = operations(redis, lambda: time.sleep(seconds))
    return counted.sent / seconds, spent


@contextmanager
def _halted(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _waiting_bytes(service: RunningService, redis: Redis, jobs: int) -> float:
    body = {**_SMALL, "kind": "generate", "deadline_ms": _DEADLINE_MS}
    # Results of before are forgotten, and the inbox trimmed, within a second or so.
    time.sleep(_SETTLE_S)
    with _halted(service.pids["worker"]):
        before = _used(redis)
        post_all([Target(service.port, "/jobs", body)], clients=4, requests=jobs)
        return (_used(redis) - before) / jobs


def _used(redis: Redis) -> int:
    return int(_info(redis, "memory")["used_memory_dataset"])


@contextmanager
def _redis() -> Iterator[RedisServer]:
    """An empty one, whose disk does not matter."""
    with tempfile.TemporaryDirectory(prefix="maskbit-bench-") as folder:
        server = RedisServer(Path(folder) / "redis")
        server.start()
        try:
            with Redis.from_url(server.url) as redis:
                redis.config_set("appendfsync", "no")
            yield server
        finally:
            server.stop()


def _reader_s() -> float:
    """Seconds of Redis at each arrival, for each connection that waits for one."""
    few, many = _WORKERS
    return max(0.0, (_arrival_s(many) - _arrival_s(few)) / (many - few))


def _arrival_s(readers: int) -> float:
    """Seconds of Redis for an arrival while so many connections wait, and for the next read."""
    with ExitStack() as stack, _redis() as server, Redis.from_url(server.url) as redis:
        redis.xgroup_create("q", GROUP, mkstream=True)
        path = server.url.removeprefix("unix://")
        waiting = []
        for number in range(readers):
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.connect(path)
            one.sendall(_read_command(number))
            waiting.append(one)
        redis.ping()
        time.sleep(0.2)
        before = main_thread_s(server.pid or 0)
        for number in range(_ARRIVALS):
            redis.xadd("q", {"id": number})
            # Whoever has waited longest is served first.
            served = waiting[number % readers]
            served.recv(4096)
            served.sendall(_read_command(number % readers))
        return (main_thread_s(server.pid or 0) - before) / _ARRIVALS


def _read_command(number: int) -> bytes:
    words = f"XREADGROUP GROUP {GROUP} worker-{number} COUNT 1 BLOCK 60000 STREAMS q >".split()
    return f"*{len(words)}\r\n".encode() + b"".join(f"${len(w)}\r\n{w}\r\n".encode() for w in words)


def _announce_s() -> tuple[float, float]:
    """Seconds of Redis for an announcement: of a worker alone, and more for each other one."""
    few, many = (_announcement_s(workers) for workers in _WORKERS)
    each = max(0.0, (many - few) / (_WORKERS[1] - _WORKERS[0]))
    return max(0.0, few - each), each


def _announcement_s(workers: int) -> float:
    keys = Keys("bench", "1")
    with _redis() as server, Redis.from_url(server.url) as redis:
        for queue in keys.queues:
            redis.xgroup_create(queue, GROUP, mkstream=True)
            for number in range(workers):
                redis.xgroup_createconsumer(queue, GROUP, f"worker-{number}")
        consumer = Consumer(server.url, keys, "worker-0", QueueLimits(lease_s=600))
        consumer.announce(_INFO)
        before = main_thread_s(server.pid or 0)
        for _ in range(_ANNOUNCEMENTS):
            consumer.announce(_INFO)
        spent = main_thread_s(server.pid or 0) - before
        consumer.close()
        return spent / _ANNOUNCEMENTS


def _look_s() -> tuple[float, float]:
    """Seconds of a gateway and of Redis for each worker that the gateway reads about."""
    texts = {f"worker-{number}": json.dumps({**_INFO, "id": number}) for number in range(_WORKERS[1])}
    with _redis() as server, Redis.from_url(server.url) as redis:
        redis.mset(texts)
        redis.zadd("workers", dict.fromkeys(texts, 1.0))
        began, before = time.process_time(), main_thread_s(server.pid or 0)
        for _ in range(_LOOKS):
            names: Any = redis.zrange("workers", 0, -1)
            found: Any = redis.mget(names)
            Speed.of([json.loads(text) for text in found])
        spent = time.process_time() - began, main_thread_s(server.pid or 0) - before
    return spent[0] / _LOOKS / len(texts), spent[1] / _LOOKS / len(texts)
