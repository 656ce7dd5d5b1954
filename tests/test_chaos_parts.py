"""The parts of `maskbit chaos`: proxy, plans, expected results, mutants, supervision."""

from __future__ import annotations

import asyncio
import io
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.bundle import open_bundle
from models.drawing import draw
from models.errors import ConfigError
from models.runtime.noop_runtime import NoopRuntime
from models.sampling_config import SamplingConfig
from service.chaos import expected
from service.chaos.command import run_all
from service.chaos.fault_plan import KINDS, OVERLOAD, plan_faults
from service.chaos.http_client import Broken, HttpClient
from service.chaos.journal import Journal, Life
from service.chaos.mutants import MUTANTS, applies, mutated
from service.chaos.process import Supervised, clean_environment, eventually
from service.chaos.proxy import Mode, Proxy, Streams
from service.chaos.trials import of_mutant, whole
from service.chaos.workload import MIX, POISON_CLASS, Burst, plan_requests
from service.jobs import scripts

# -- proxy ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _proxied() -> AsyncIterator[tuple[Proxy, HttpClient, Counter[str]]]:
    """A proxy before a server that answers `ok`, its client, and how many requests came through."""
    seen: Counter[str] = Counter()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                seen["requests"] += 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except (OSError, EOFError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def dial() -> Streams:
        return await asyncio.open_connection("127.0.0.1", port)

    proxy = Proxy(dial)
    await proxy.start()
    client = HttpClient(proxy.port)
    try:
        yield proxy, client, seen
    finally:
        client.close()
        await proxy.stop()
        server.close()


async def _ask(client: HttpClient, timeout_s: float = 5.0) -> bytes:
    return (await client.request("GET", "/", timeout_s=timeout_s)).body


def test_a_clean_or_late_proxy_carries_requests_and_replies() -> None:
    async def story() -> None:
        async with _proxied() as (proxy, client, seen):
            for mode in (Mode.CLEAN, Mode.LATENCY):
                proxy.turn(mode, delay_s=0.01)
                assert await _ask(client) == b"ok"
            assert seen["requests"] == 2

    asyncio.run(story())


def test_a_lost_reply_is_lost_after_the_request_was_carried_out() -> None:
    async def story() -> None:
        async with _proxied() as (proxy, client, seen):
            proxy.turn(Mode.LOST_REPLY)
            with pytest.raises(Broken):
                await _ask(client)
            assert seen["requests"] == 1
            proxy.turn(Mode.CLEAN)
            assert await _ask(client) == b"ok"

    asyncio.run(story())


def test_a_half_open_connection_stays_silent_for_good_and_a_new_one_works_again() -> None:
    async def story() -> None:
        async with _proxied() as (proxy, client, seen):
            old = await client.connect()
            proxy.turn(Mode.HALF_OPEN)
            with pytest.raises(Broken, match="TimeoutError"):
                await _ask(client, timeout_s=0.2)
            await old.send(b"GET / HTTP/1.1\r\n\r\n")
            await asyncio.sleep(0.1)
            proxy.turn(Mode.CLEAN)
            assert await _ask(client) == b"ok"
            assert seen["requests"] == 1
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(old.head(), 0.1)
            old.close()

    asyncio.run(story())


def test_a_reset_breaks_every_connection_old_and_new() -> None:
    async def story() -> None:
        async with _proxied() as (proxy, client, seen):
            assert await _ask(client) == b"ok"
            proxy.turn(Mode.RESET)
            for _ in range(2):
                with pytest.raises(Broken):
                    await _ask(client)
            assert seen["requests"] == 1

    asyncio.run(story())


# -- plans ---------------------------------------------------------------------------------------------------

GATEWAYS, WORKERS = ("gateway-0", "gateway-1"), ("worker-0", "worker-1", "worker-2")


def test_a_fault_plan_follows_from_its_seed_and_has_every_kind_before_any_comes_again() -> None:
    plan = plan_faults(len(KINDS) + 5, 60.0, 3, gateways=GATEWAYS, workers=WORKERS)

    assert plan == plan_faults(len(KINDS) + 5, 60.0, 3, gateways=GATEWAYS, workers=WORKERS)
    assert plan != plan_faults(len(KINDS) + 5, 60.0, 4, gateways=GATEWAYS, workers=WORKERS)
    assert {fault.kind for fault in plan[: len(KINDS)]} == set(KINDS)
    assert [fault.at_s for fault in plan] == sorted(fault.at_s for fault in plan)
    assert all(0 < fault.at_s < 60 for fault in plan)


def test_faults_hit_what_their_kind_says() -> None:
    for fault in plan_faults(200, 60.0, 5, gateways=GATEWAYS, workers=WORKERS):
        family = fault.kind.split("-")[0]
        allowed = {
            "worker": WORKERS,
            "gateway": GATEWAYS,
            "front": GATEWAYS,
            "slow": GATEWAYS,
            "link": (*GATEWAYS, *WORKERS),
            "redis": ("redis",),
            "publish": ("bundle",),
            OVERLOAD: ("clients",),
        }[family]
        assert fault.target in allowed


def test_a_plan_of_requests_has_the_mix_the_poison_and_seeds_of_their_own() -> None:
    plan = plan_requests(2000, 60.0, 1, bursts=[Burst(30.0, 2.0, 200)], poison=3)

    assert len(plan) == 2000
    assert sum(request.poison for request in plan) == 3
    assert all(request.poison == (request.class_id == POISON_CLASS) for request in plan)
    assert len({request.seed for request in plan}) == 2000
    assert [request.at_s for request in plan] == sorted(request.at_s for request in plan)
    assert sum(30.0 <= request.at_s <= 32.0 for request in plan) >= 200
    shares = Counter(request.action for request in plan)
    assert all(abs(shares[action] / 2000 - share) < 0.05 for action, share in MIX.items())
    assert all(request.steps in expected.STEPS for request in plan)


def test_the_short_form_has_40_faults_of_all_families_and_2000_requests() -> None:
    scenario = whole(2000, 40, 1)

    assert len(scenario.requests) == 2000
    assert {fault.kind for fault in scenario.faults} == set(KINDS)
    assert len(scenario.faults) == 40


# -- expected results ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", expected.STEPS)
def test_expected_pictures_are_those_that_the_runtime_draws(steps: int) -> None:
    bundle = open_bundle("fruit")
    sampling = SamplingConfig(steps=steps, mask_schedule="linear")

    drawn = draw(NoopRuntime(bundle), bundle.manifest, sampling, [3, 4], [11, 12])

    assert np.array_equal(drawn[0], expected.drawn(11, steps))
    assert expected.digest(drawn[1]) == expected.right_digest("poll", 12, steps)


def test_expected_tokens_and_pixels_are_those_of_the_runtime() -> None:
    runtime = NoopRuntime(open_bundle("fruit"))
    with Image.open(io.BytesIO(expected.picture(5))) as image:
        pixels = np.asarray(image.convert("RGB"))

    assert np.array_equal(runtime.encode(pixels[None])[0], expected.encoded(5))
    assert np.array_equal(runtime.decode(expected.grid_of(5)[None])[0], expected.decoded(5))


# -- mutants -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MUTANTS)
def test_each_mutant_still_finds_what_it_breaks(name: str) -> None:
    mutant = MUTANTS[name]
    assert applies(mutant)
    every = (*scripts.GATEWAY, *scripts.WORKER)
    changed = [one for one in every if mutated(mutant)(one) != scripts.source(one)]
    assert bool(changed) == bool(mutant.edits)
    assert of_mutant(name, 1).shape.mutant == name
    assert of_mutant(name, 1, control=True).shape.mutant == ""


# -- processes -----------------------------------------------------------------------------------------------


def test_a_killed_process_is_started_again_and_a_stopped_one_is_gone(tmp_path: Path) -> None:
    async def story() -> None:
        journal = Journal()
        command = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"]
        log = tmp_path / "log"
        process = Supervised("sleeper", command, clean_environment(), log, journal)
        process.start()

        async def printed(times: int) -> bool:
            # It may print before its start is noted.
            return process.pid > 0 and log.exists() and log.read_text().count("here") == times

        await eventually(lambda: printed(1), 20)
        first = process.pid
        process.send(signal.SIGKILL)
        assert await process.gone(1, 20)
        await eventually(lambda: printed(2), 20)
        assert process.pid != first
        await process.stop()

        assert process.starts == 2
        assert [type(event) for event in journal.events] == [Life]

    asyncio.run(story())


def test_a_folder_in_use_is_refused_for_an_older_run_s_redis_file_would_be_read_again(tmp_path: Path) -> None:
    (tmp_path / "seed-1").mkdir()
    with pytest.raises(ConfigError, match="which is not empty"):
        run_all(requests=50, faults=0, seeds=[1], mutants=[], controls=False, output=tmp_path, say=print)
