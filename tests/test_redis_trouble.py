"""Trouble with Redis that only uvloop, or only a damaged file, brings about."""

from __future__ import annotations

import asyncio
import gc
import re
import socket
import struct
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import uvloop
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from service.errors import Unavailable
from service.jobs import redis_link
from service.jobs.job import NewJob, QueueLimits
from service.jobs.keys import GROUP, Keys
from service.jobs.redis_link import AsyncLink, ThreadLink, is_transient
from service.jobs.store import JobStore

KEYS = Keys("fruit", "1")


@pytest.fixture
def resetting_port() -> Iterator[int]:
    """A server that resets every connection as soon as it is there."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def reset_all() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()

        thread = threading.Thread(target=reset_all)
        thread.start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_a_redis_that_resets_connections_is_unavailable_under_uvloop_and_no_internal_error(
    resetting_port: int,
) -> None:
    async def ask() -> set[str]:
        link = AsyncLink(f"redis://127.0.0.1:{resetting_port}/0", KEYS.shared)
        calls = [link.run("depth") for _ in range(100)] + [link.call(link.redis.ping) for _ in range(300)]
        replies = await asyncio.gather(*calls, return_exceptions=True)
        await link.close()
        return {type(reply).__name__ for reply in replies}

    assert uvloop.run(ask()) == {Unavailable.__name__}


def test_what_redis_is_and_says_is_for_the_log_and_not_for_clients(
    resetting_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask() -> None:
        link = AsyncLink(f"redis://127.0.0.1:{resetting_port}/0", KEYS.shared)
        with pytest.raises(Unavailable, match=r"^the job queue does not answer$"):
            await link.run("depth")
        await link.close()

    with caplog.at_level("DEBUG"):
        asyncio.run(ask())
    [record] = [one for one in caplog.records if "a call is given up" in one.message]
    # An idle gateway meets it twice a second.
    assert record.levelname == "DEBUG"


@pytest.mark.parametrize("rights", ["-@all +ping", "+@all -zcard", "+@all -evalsha"])
def test_a_user_without_enough_rights_is_a_redis_that_does_not_answer(
    redis_url: str, raw: Redis, caplog: pytest.LogCaptureFixture, rights: str
) -> None:
    """Whoever runs Redis can grant them while the service runs."""

    async def ask() -> None:
        link = AsyncLink(redis_url.replace("unix://", "unix://limited:word@"), KEYS.shared)
        try:
            for _ in range(3):
                with pytest.raises(Unavailable, match=r"^the job queue does not answer$"):
                    await link.run("depth")
        finally:
            await link.close()

    execute: Any = raw.execute_command
    execute("ACL", "SETUSER", "limited", "on", ">word", "~*", *rights.split())
    try:
        with caplog.at_level("INFO"):
            asyncio.run(ask())
    finally:
        execute("ACL", "DELUSER", "limited")
    assert len(re.findall("a call is given up: .*(?:permission|The user)", caplog.text)) == 1


@pytest.fixture
def web_port() -> Iterator[int]:
    """A server that speaks HTTP."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join(10)


@pytest.fixture(params=["another database", "another protocol"])
def wrong_url(request: pytest.FixtureRequest, redis_url: str) -> str:
    """The URL of what answers, but not as our Redis, to whoever connects."""
    if request.param == "another database":
        return f"{redis_url}?db=99"
    return f"redis://127.0.0.1:{request.getfixturevalue('web_port')}/0"


def test_what_answers_but_not_as_our_redis_is_unavailable_to_a_gateway(wrong_url: str) -> None:
    async def ask() -> set[str]:
        link = AsyncLink(wrong_url, KEYS.shared)
        calls = (link.run("depth"), link.call(link.redis.ping))
        replies = await asyncio.gather(*calls, return_exceptions=True)
        await link.close()
        return {type(reply).__name__ for reply in replies}

    assert uvloop.run(ask()) == {Unavailable.__name__}


def test_what_answers_but_not_as_our_redis_is_trouble_that_may_pass_to_a_worker(wrong_url: str) -> None:
    link = ThreadLink(wrong_url, KEYS.shared, "test-worker")
    for call in (lambda: link.call("PING"), lambda: link.redis.ping()):
        with pytest.raises(RedisConnectionError) as caught:
            call()
        assert is_transient(caught.value)
    link.close()


def test_an_error_of_a_script_stays_one(redis_url: str) -> None:
    async def ask() -> None:
        link = AsyncLink(redis_url, KEYS.shared)
        try:
            with pytest.raises(ResponseError):
                await link.run("first")
        finally:
            await link.close()

    asyncio.run(ask())


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def test_a_call_whose_caller_left_ends_without_a_word_and_closing_waits_for_one_try(
    silent_port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redis_link, "_CALL_TIMEOUT_S", 0.2)
    tries = 0

    async def leave() -> None:
        link = AsyncLink(f"redis://127.0.0.1:{silent_port}/0", KEYS.shared)

        async def ask() -> Any:
            nonlocal tries
            tries += 1
            return await link.redis.ping()

        waiting = asyncio.create_task(link.call(ask))
        while not tries:
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await link.close()

    asyncio.run(leave())
    gc.collect()
    assert tries == 1
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_mistake_in_a_call_whose_caller_left_is_told(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def leave() -> None:
        link = AsyncLink(redis_url, KEYS.shared)
        begun = asyncio.Event()

        async def wrong() -> None:
            begun.set()
            await asyncio.sleep(0.05)
            raise ValueError("a mistake")

        waiting = asyncio.create_task(link.call(wrong))
        await begun.wait()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await link.close()

    asyncio.run(leave())
    assert "ValueError: a mistake" in caplog.text


def test_an_error_of_the_program_is_no_trouble_with_redis(redis_url: str) -> None:
    async def call() -> None:
        link = AsyncLink(redis_url, KEYS.shared)

        async def wrong() -> None:
            raise RuntimeError("a mistake")

        try:
            with pytest.raises(RuntimeError, match="a mistake"):
                await link.call(wrong)
        finally:
            await link.close()

    uvloop.run(call())


def test_an_entry_that_outlived_its_job_in_a_damaged_file_is_swept_away(
    redis_url: str, keys: Keys, raw: Redis
) -> None:
    raw.xgroup_create(keys.interactive, GROUP, 0, mkstream=True)
    raw.xadd(keys.interactive, {"id": "1" * 32})
    # Delivered and acknowledged, but never removed: no worker will read it again.
    raw.xgroup_setid(keys.interactive, GROUP, "$")

    async def sweep() -> str:
        store = JobStore(redis_url, keys, QueueLimits())
        await store.start()
        job = NewJob(id=uuid.uuid4().hex, kind="generate", payload=b"", fingerprint="")
        job_id = await store.submit(job)
        async with asyncio.timeout(20):
            while raw.xlen(keys.interactive) > 1:
                await asyncio.sleep(0.02)
        await store.close()
        return job_id

    job_id = asyncio.run(sweep())

    entries: Any = raw.xrange(keys.interactive)
    [(_, fields)] = entries
    assert fields[b"id"] == job_id.encode()
