"""The connection that all calls of a gateway share."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
import uvloop
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from service.jobs.line import Line
from service.jobs.redis_link import open_line
from service.jobs.redis_server import RedisServer

pytest_plugins = ["tests.redis_fixtures"]


async def closing(line: Line, work: Any) -> Any:
    """What `work` gives, with the line closed after it."""
    try:
        return await work
    finally:
        await line.close()


def reads(redis: Redis) -> int:
    """How often the server has read from a connection."""
    stats: Any = redis.info("stats")
    return int(stats["total_reads_processed"])


def test_every_caller_gets_its_own_answer_and_many_commands_go_out_together(
    redis_url: str, raw: Redis
) -> None:
    async def ask() -> list[bytes]:
        line = open_line(redis_url)
        return list(await closing(line, asyncio.gather(*(line.call("ECHO", i) for i in range(200)))))

    before = reads(raw)
    answers = uvloop.run(ask())
    assert answers == [b"%d" % i for i in range(200)]
    assert reads(raw) - before < 50


def test_an_error_of_one_command_is_not_that_of_its_neighbours(redis_url: str) -> None:
    async def ask() -> list[Any]:
        line = open_line(redis_url)
        calls = (line.call("ECHO", "a"), line.call("NONSENSE"), line.call("ECHO", "b"))
        return list(await closing(line, asyncio.gather(*calls, return_exceptions=True)))

    first, error, last = uvloop.run(ask())
    assert (first, last) == (b"a", b"b")
    assert isinstance(error, ResponseError)


def test_whoever_stops_waiting_leaves_no_answer_behind_for_others(redis_url: str) -> None:
    async def ask() -> list[Any]:
        line = open_line(redis_url)
        calls = [line.call("ECHO", i) for i in range(100)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        later = [line.call("ECHO", i) for i in range(100, 200)]
        return list(await closing(line, asyncio.gather(*calls[1::2], *later)))

    assert uvloop.run(ask()) == [b"%d" % i for i in (*range(1, 100, 2), *range(100, 200))]


def test_a_command_whose_caller_left_is_carried_out(redis_url: str, raw: Redis) -> None:
    async def leave() -> None:
        line = open_line(redis_url)
        line.call("SET", "left", "behind").cancel()
        await closing(line, line.call("PING"))

    uvloop.run(leave())
    assert raw.get("left") == b"behind"


def test_a_silent_redis_fails_all_that_wait_and_is_connected_to_anew(own_redis: RedisServer) -> None:
    async def ask() -> tuple[list[Any], bytes]:
        line = open_line(own_redis.url, timeout_s=0.2)
        await line.call("PING")
        assert own_redis.pid is not None
        os.kill(own_redis.pid, signal.SIGSTOP)
        try:
            lost = await asyncio.gather(
                *(line.call("ECHO", "lost") for _ in range(100)), return_exceptions=True
            )
        finally:
            os.kill(own_redis.pid, signal.SIGCONT)
        return list(lost), await closing(line, line.call("ECHO", "found"))

    lost, found = uvloop.run(ask())
    assert {type(error) for error in lost} == {TimeoutError}
    assert found == b"found"


def test_a_connection_that_redis_closes_fails_what_is_under_way_only(redis_url: str, raw: Redis) -> None:
    async def ask() -> tuple[Any, Any]:
        line = open_line(redis_url)
        number = await line.call("CLIENT", "ID")
        waiting = line.call("BLPOP", "nothing", 10)
        await asyncio.sleep(0.05)
        raw.client_kill_filter(_id=number)
        lost = await asyncio.gather(waiting, return_exceptions=True)
        return lost[0], await closing(line, line.call("ECHO", "again"))

    lost, again = uvloop.run(ask())
    assert isinstance(lost, RedisConnectionError)
    assert again == b"again"


def test_a_closed_line_gives_up_what_waits_and_takes_nothing_more(redis_url: str) -> None:
    async def ask() -> list[Any]:
        line = open_line(redis_url)
        waiting = line.call("BLPOP", "nothing", 10)
        await asyncio.sleep(0.05)
        await line.close()
        return list(await asyncio.gather(waiting, line.call("PING"), return_exceptions=True))

    errors = uvloop.run(ask())
    assert [type(error) for error in errors] == [RedisConnectionError] * 2


def test_what_is_no_command_is_told_to_its_caller_at_once(redis_url: str) -> None:
    async def ask() -> bytes:
        line = open_line(redis_url)
        with pytest.raises((TypeError, ValueError)):
            line.call("SET", "key", None)  # type: ignore[arg-type]
        answer: bytes = await closing(line, line.call("ECHO", "fine"))
        return answer

    assert uvloop.run(ask()) == b"fine"
