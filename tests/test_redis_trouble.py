"""Trouble with Redis that only uvloop, or only a damaged file, brings about."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop
from redis import Redis

from service.errors import Unavailable
from service.jobs.job import NewJob, QueueLimits
from service.jobs.keys import GROUP, Keys
from service.jobs.redis_link import AsyncLink
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

    with caplog.at_level("INFO"):
        asyncio.run(ask())
    assert "a call is given up" in caplog.text


@pytest.mark.parametrize("rights", ["-@all +ping", "+@all -zcard", "+@all -evalsha"])
def test_a_user_without_enough_rights_is_a_redis_that_does_not_answer(
    redis_url: str, raw: Redis, caplog: pytest.LogCaptureFixture, rights: str
) -> None:
    """Whoever runs Redis can grant them while the service runs."""

    async def ask() -> None:
        link = AsyncLink(redis_url.replace("unix://", "unix://limited:word@"), KEYS.shared)
        try:
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
    assert re.search("a call is given up: .*(permission|The user)", caplog.text)


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
