"""Promises that need a whole gateway and trouble behind it: poison, a full disk, a Redis without memory."""

from __future__ import annotations

import resource
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from models.bundle import Bundle
from service.jobs.consumer import Consumer
from service.jobs.payloads import GenerateJob
from service.jobs.redis_server import RedisServer
from tests.gateway_harness import FakeWorker, Gateway, gateway_running, until

ORDER = {"kind": "generate", "class_id": 1, "seed": 7}


@pytest.fixture
def gateway(plain_bundle: Bundle, own_redis: RedisServer) -> Iterator[Gateway]:
    """A gateway over a Redis of its own, with short leases."""
    with gateway_running(plain_bundle, own_redis.url, lease_s=0.5) as running:
        yield running


@contextmanager
def working(gateway: Gateway, redis: RedisServer) -> Iterator[FakeWorker]:
    worker = FakeWorker(gateway, redis.url)
    worker.start()
    try:
        until(lambda: is_ready(gateway))
        yield worker
    finally:
        worker.stop()


def is_ready(gateway: Gateway) -> bool:
    return gateway.client.get("/readyz").status_code == 200


def post(gateway: Gateway) -> httpx.Response:
    return gateway.client.post("/jobs", json=ORDER)


def look(gateway: Gateway, reply: httpx.Response) -> httpx.Response:
    return gateway.client.get(reply.headers["location"])


def check_unavailable(gateway: Gateway, reply: httpx.Response) -> None:
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "unavailable"
    assert int(reply.headers["retry-after"]) >= 1
    assert gateway.client.get("/livez").status_code == 200


def dying_worker(gateway: Gateway, redis: RedisServer) -> Consumer:
    """A worker that is never heard of again when it has a job."""
    return Consumer(redis.url, gateway.keys, uuid.uuid4().hex, gateway.settings.queue_limits())


def test_poison_is_500_and_kept_with_its_payload(gateway: Gateway, own_redis: RedisServer) -> None:
    first = dying_worker(gateway, own_redis)

    def announced() -> bool:
        first.announce({"runtime": "noop"})
        return is_ready(gateway)

    until(announced)
    reply = post(gateway)
    assert first.claim(generate=True, codec=False, block_s=5) is not None
    first.close()

    def given_up() -> bool:
        assert look(gateway, reply).status_code in (202, 500)
        worker = dying_worker(gateway, own_redis)
        worker.reclaim()
        worker.close()
        return look(gateway, reply).status_code == 500

    until(given_up)
    answer = look(gateway, reply).json()
    assert (answer["state"], answer["error"]["code"]) == ("failed", "poisoned")
    with Redis.from_url(own_redis.url) as redis:
        dead: Any = redis.xrange(gateway.keys.dead)
    [fields] = [fields for _, fields in dead]
    assert fields[b"id"].decode() == answer["id"]
    assert GenerateJob.unpack(fields[b"payload"]).seeds == (7,)


def append_only_file(redis: RedisServer, folder: Path) -> Path:
    """The file that grows: one of several in a folder since Redis 7."""
    return next((folder / "state").glob("appendonlydir/*.incr.aof"), folder / "state" / "appendonly.aof")


def test_a_disk_that_takes_no_more_costs_no_accepted_job(
    gateway: Gateway, own_redis: RedisServer, tmp_path: Path
) -> None:
    with working(gateway, own_redis) as worker:
        worker.gate.clear()
        accepted = [post(gateway)]
        assert own_redis.pid is not None
        room = append_only_file(own_redis, tmp_path).stat().st_size + 4000
        _, hard = resource.prlimit(own_redis.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(own_redis.pid, resource.RLIMIT_FSIZE, (room, hard))
        while (reply := post(gateway)).status_code == 202:
            accepted.append(reply)
        check_unavailable(gateway, reply)
        until(lambda: not own_redis.alive)
        until(lambda: not is_ready(gateway))
        own_redis.start()
        until(lambda: is_ready(gateway))
        worker.gate.set()
        until(lambda: [look(gateway, one).status_code for one in accepted] == [200] * len(accepted))
        assert len(accepted) > 1


def test_a_redis_that_takes_no_writes_is_503_until_it_takes_them_again(
    gateway: Gateway, own_redis: RedisServer
) -> None:
    with working(gateway, own_redis) as worker, Redis.from_url(own_redis.url) as redis:
        worker.gate.clear()
        running = post(gateway)
        until(lambda: worker.claimed)
        redis.config_set("maxmemory", 1)
        reply = post(gateway)
        check_unavailable(gateway, reply)
        assert "does not answer" in reply.json()["error"]["message"]
        worker.gate.set()
        until(lambda: look(gateway, running).status_code == 200)
        redis.config_set("maxmemory", 0)
        until(lambda: post(gateway).status_code == 202)
