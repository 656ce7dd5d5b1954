"""`maskbit chaos` as a real process: its short form, as CI runs it, and the Redis that it breaks."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest
from redis import asyncio as aioredis

from service.chaos.journal import Journal, Loss, only
from service.chaos.mutants import MUTANTS
from service.chaos.redis_node import RedisNode

SHORT_FORM_S = 600


def chaos(*arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "maskbit_cli", "chaos", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.mark.timeout(SHORT_FORM_S)
def test_the_short_form_holds_every_promise_finds_every_mutant_and_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    result = chaos("--output", str(tmp_path), timeout_s=SHORT_FORM_S - 20)

    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    table = dict(re.findall(r"^([a-z][^\n]*?)  +(\S[^\n]*)$", result.stdout, re.MULTILINE))
    assert table["requests"].startswith("2000,")
    assert table["faults"] == "40"
    for row in ("lost", "doubled", "changed", "cancelled but done", "reached another request"):
        assert table[row] == "0"
    assert all(f"mutant {name:<20}  found by" in result.stdout for name in MUTANTS)
    assert result.stdout.rstrip().endswith("verdict: every promise holds, every mutant was found")
    left = [one for one in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(one.info["cmdline"])]
    assert left == []


def test_an_unknown_mutant_is_one_line_that_names_the_known_ones() -> None:
    result = chaos("--mutant", "nonsense")

    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert all(name in result.stderr for name in MUTANTS)


def _with_redis(folder: Path, story: Callable[[RedisNode, aioredis.Redis], Awaitable[None]]) -> list[Loss]:
    """Run `story` against a durable Redis in `folder`; what Redis lost meanwhile."""
    journal = Journal()

    async def run() -> None:
        node = RedisNode(folder, journal)
        node.process.start()
        await node.ready()
        async with aioredis.Redis.from_url(node.url) as redis:
            try:
                await story(node, redis)
            finally:
                await node.stop()

    asyncio.run(run())
    return only(journal.events, Loss)


def test_a_killed_redis_comes_back_with_everything(tmp_path: Path) -> None:
    async def story(node: RedisNode, redis: aioredis.Redis) -> None:
        await redis.set("key", "value")
        await node.kill()
        await node.terminate()
        assert await redis.get("key") == b"value"

    assert _with_redis(tmp_path, story) == []


def test_an_emptied_redis_comes_back_empty_and_a_cut_one_without_its_last_write(tmp_path: Path) -> None:
    async def story(node: RedisNode, redis: aioredis.Redis) -> None:
        await redis.set("first", "1")
        await redis.set("last", "1")
        await node.truncate(3)
        assert await redis.keys() == [b"first"]
        await node.wipe()
        assert await redis.keys() == []

    assert [loss.wiped for loss in _with_redis(tmp_path, story)] == [False, True]


def test_a_redis_without_disk_ends_and_comes_back_with_what_it_had_confirmed(tmp_path: Path) -> None:
    async def story(node: RedisNode, redis: aioredis.Redis) -> None:
        confirmed = []

        async def write() -> None:
            for number in range(1000):
                await redis.set(str(number), "x" * 500)
                confirmed.append(str(number).encode())

        writing = asyncio.create_task(write())
        await node.fill_disk(timeout_s=10)
        await asyncio.gather(writing, return_exceptions=True)
        assert node.process.starts == 2
        assert set(confirmed) <= set(await redis.keys())

    assert _with_redis(tmp_path, story) == []
