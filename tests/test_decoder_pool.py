import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import InvalidRequest, PayloadTooLarge, ServiceError, Unavailable
from service.gateway import uploads
from service.gateway.decoder_pool import DecoderPool, Pixels

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def solid(colour: str, kind: str = "PNG", side: int = 30) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(stream, kind)
    return stream.getvalue()


@cache
def large() -> bytes:
    """36 megapixels: some tenths of a second and 144 MB to decode."""
    return solid("green", side=6000)


def is_solid(pixels: Pixels, red: int, green: int, blue: int) -> bool:
    return bool(np.abs(pixels.astype(int) - [red, green, blue]).max() <= 3)


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@asynccontextmanager
async def pool(**options: float) -> AsyncIterator[DecoderPool]:
    decoders = DecoderPool(**options)  # type: ignore[arg-type]
    await decoders.start()
    try:
        yield decoders
    finally:
        await decoders.close()


async def small(decoders: DecoderPool, data: bytes) -> Pixels:
    return await decoders.decode(data, size=8, fit="crop")


async def outcome_of(decoders: DecoderPool, data: bytes, size: int) -> Pixels | ServiceError:
    try:
        return await decoders.decode(data, size=size, fit="crop")
    except ServiceError as error:
        return error


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as each:
        yield each


@pytest.fixture(scope="module")
def shared_pool(runner: asyncio.Runner) -> Iterator[DecoderPool]:
    decoders = DecoderPool()
    runner.run(decoders.start())
    yield decoders
    runner.run(decoders.close())


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as each:
        yield each.run


@pytest.mark.shared
def test_every_hostile_file_is_answered_as_its_manifest_says(
    shared_data: Path, runner: asyncio.Runner, shared_pool: DecoderPool
) -> None:
    folder = shared_data / "data" / "hostile"
    before = shared_pool.pids
    outcomes, looks = {}, dict[str, Pixels]()
    for entry in json.loads((folder / "manifest.json").read_text())["files"]:
        data = (folder / entry["file"]).read_bytes()
        outcome = outcomes[entry["file"]] = runner.run(outcome_of(shared_pool, data, size=64))
        if isinstance(outcome, ServiceError):
            assert entry["expect"] in ("reject", "either"), entry["file"]
            assert 400 <= outcome.status < 500, entry["file"]
            assert "Error" not in outcome.message
        else:
            assert entry["expect"] in ("decode", "either"), entry["file"]
            assert outcome.shape == (64, 64, 3)
            # The files of one look are compared to each other, since the original is not among them.
            like = looks.setdefault(entry.get("looks_like", entry["file"]), outcome)
            assert np.abs(outcome.astype(int) - like).mean() < 10, entry["file"]
    assert isinstance(outcomes["files/made_flood_12000x12000.png"], PayloadTooLarge)
    assert shared_pool.pids == before
    gradient = (folder / "files" / "made_gradient16.png").read_bytes()
    columns = runner.run(shared_pool.decode(gradient, size=256, fit="stretch")).mean(axis=(0, 2))
    assert np.abs(columns - np.arange(256)).max() <= 1


@cache
def specimens() -> list[bytes]:
    y, x = np.mgrid[0:24, 0:24]
    image = Image.fromarray(np.stack([x * 10, y * 10, x * y % 256], axis=-1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = []
    for kind, options in (
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {}),
        ("GIF", {}),
    ):
        stream = io.BytesIO()
        image.save(stream, kind, **options, **({} if kind == "GIF" else {"exif": exif}))
        data.append(stream.getvalue())
    return data


@settings(max_examples=250, deadline=None, derandomize=True)
@given(data=st.data())
def test_mutated_pictures_give_pixels_or_a_4xx_and_never_harm_the_child(
    runner: asyncio.Runner, shared_pool: DecoderPool, data: st.DataObject
) -> None:
    broken = bytearray(data.draw(st.sampled_from(specimens())))
    places = st.integers(0, len(broken) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=8)):
        broken[place] = value
    del broken[data.draw(st.one_of(st.just(len(broken)), places)) :]
    before = shared_pool.pids
    outcome = runner.run(outcome_of(shared_pool, bytes(broken), size=8))
    assert isinstance(outcome, ServiceError) or outcome.shape == (8, 8, 3)
    assert not isinstance(outcome, ServiceError) or 400 <= outcome.status < 500
    assert shared_pool.pids == before


def test_children_killed_while_idle_cost_no_request(run: Callable[..., None]) -> None:
    async def scene() -> None:
        async with pool(workers=2) as decoders:
            before = set(decoders.pids)
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            answers = await asyncio.gather(*(small(decoders, solid("red")) for _ in range(4)))
            assert all(is_solid(pixels, 255, 0, 0) for pixels in answers)
            assert len(decoders.pids) == 2
            assert not before & set(decoders.pids)

    run(scene())


async def kill_when_decoding(decoders: DecoderPool) -> None:
    """Kills the child once it holds so much memory that it must be decoding the large picture."""
    while not any(resident_bytes(pid) > 80e6 for pid in decoders.pids if alive(pid)):
        await asyncio.sleep(0.001)
    os.kill(decoders.pids[0], signal.SIGKILL)


def test_a_picture_whose_child_is_killed_in_mid_flight_gets_another_child(run: Callable[..., None]) -> None:
    async def scene() -> None:
        async with pool() as decoders:
            before = decoders.pids
            decoding = asyncio.create_task(small(decoders, large()))
            await kill_when_decoding(decoders)
            assert is_solid(await decoding, 0, 128, 0)
            assert len(decoders.pids) == 1
            assert decoders.pids != before

    run(scene())


def test_a_picture_that_ends_two_children_is_refused_and_the_next_one_is_decoded(
    run: Callable[..., None],
) -> None:
    async def scene() -> None:
        async with pool() as decoders:
            decoding = asyncio.create_task(small(decoders, large()))
            first = decoders.pids
            await kill_when_decoding(decoders)
            while decoders.pids in ([], first):
                await asyncio.sleep(0.001)
            await kill_when_decoding(decoders)
            with pytest.raises(InvalidRequest, match="damaged or hostile"):
                await decoding
            assert is_solid(await small(decoders, solid("red")), 255, 0, 0)

    run(scene())


def test_a_picture_that_takes_too_long_is_ended_and_the_next_one_is_decoded(run: Callable[..., None]) -> None:
    async def scene() -> None:
        async with pool(timeout_s=0.5) as decoders:
            await small(decoders, solid("red"))
            slow = decoders.pids
            os.kill(slow[0], signal.SIGSTOP)
            with pytest.raises(InvalidRequest, match=r"longer to decode than the 0\.5 s"):
                await small(decoders, large())
            assert not alive(slow[0])
            assert is_solid(await small(decoders, solid("red")), 255, 0, 0)
            assert len(decoders.pids) == 1

    run(scene())


def test_a_picture_over_the_memory_limit_is_refused_and_its_child_lives_on(run: Callable[..., None]) -> None:
    async def scene() -> None:
        async with pool(memory_bytes=200 << 20) as decoders:
            before = decoders.pids
            with pytest.raises(PayloadTooLarge, match="memory"):
                await small(decoders, large())
            assert is_solid(await small(decoders, solid("red")), 255, 0, 0)
            assert decoders.pids == before

    run(scene())


def test_calls_over_the_bound_are_told_to_come_back_and_waiting_ones_are_served(
    run: Callable[..., None],
) -> None:
    async def scene() -> None:
        async with pool(max_waiting=2) as decoders:
            await small(decoders, solid("red"))
            os.kill(decoders.pids[0], signal.SIGSTOP)
            colours = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255)}
            calls = [asyncio.create_task(small(decoders, solid(colour))) for colour in colours]
            await asyncio.sleep(0)
            with pytest.raises(Unavailable) as caught:
                await small(decoders, solid("red"))
            assert caught.value.retry_after_s is not None
            assert caught.value.retry_after_s >= 1
            os.kill(decoders.pids[0], signal.SIGCONT)
            for pixels, expected in zip(await asyncio.gather(*calls), colours.values(), strict=True):
                assert is_solid(pixels, *expected)

    run(scene())


def test_the_answer_of_a_caller_that_left_reaches_nobody_else(run: Callable[..., None]) -> None:
    async def scene() -> None:
        async with pool() as decoders:
            await small(decoders, solid("red"))
            before = decoders.pids
            leaving = asyncio.create_task(small(decoders, large()))
            await asyncio.sleep(0)
            waiting = asyncio.create_task(small(decoders, solid("blue")))
            await asyncio.sleep(0.01)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            assert is_solid(await waiting, 0, 0, 255)
            assert decoders.pids == before

    run(scene())


def test_closing_ends_the_children_and_every_call(run: Callable[..., None]) -> None:
    async def scene() -> None:
        async with pool() as decoders:
            await small(decoders, solid("red"))
            before = decoders.pids
            os.kill(before[0], signal.SIGSTOP)
            calls = [asyncio.create_task(small(decoders, large())) for _ in range(3)]
            await asyncio.sleep(0.01)
            await decoders.close()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3
            assert decoders.pids == []
            assert not alive(before[0])

    run(scene())


def test_children_that_do_not_start_are_our_fault_and_not_the_picture_s(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., None]
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")

    async def scene() -> None:
        async with pool() as decoders:
            with pytest.raises(Unavailable, match="does not start"):
                await small(decoders, solid("red"))

    run(scene())


@pytest.mark.parametrize("reply", [(0, 191), (0, 2**32 - 1), (1, 1001), (2, 2**32 - 1), (77, 5)])
def test_a_child_that_answers_nonsense_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runner: asyncio.Runner, reply: tuple[int, int]
) -> None:
    script = tmp_path / "taken_over.py"
    script.write_text(
        "import struct, sys, time\n"
        "out = sys.stdout.buffer\n"
        "out.write(struct.pack('>BI', 0, 0))\n"
        f"out.write(struct.pack('>BI', *{reply}) + b'x' * 2000)\n"
        "out.flush()\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(uploads, "__file__", str(script))

    async def scene() -> None:
        async with pool() as decoders:
            with pytest.raises(InvalidRequest, match="damaged or hostile"):
                await small(decoders, solid("red"))

    runner.run(scene())


def test_the_memory_of_a_child_is_flat_over_hundreds_of_pictures(
    runner: asyncio.Runner, shared_pool: DecoderPool
) -> None:
    pictures = [solid("red", kind, side=300) for kind in ("PNG", "JPEG", "WEBP", "GIF")]
    pictures.append(pictures[1][:300])
    readings = []
    for _ in range(3):
        for index in range(150):
            runner.run(outcome_of(shared_pool, pictures[index % 5], size=64))
        readings.append(resident_bytes(shared_pool.pids[0]))
    assert readings[-1] - readings[0] < 2e6


def test_a_child_knows_no_secrets_and_can_leave_no_core_and_no_files(
    monkeypatch: pytest.MonkeyPatch, runner: asyncio.Runner
) -> None:
    monkeypatch.setenv("MASKBIT_API_KEYS", "very-secret")

    async def scene() -> None:
        async with pool(memory_bytes=1 << 30) as decoders:
            await small(decoders, solid("red"))
            process = Path(f"/proc/{decoders.pids[0]}")
            assert b"very-secret" not in (process / "environ").read_bytes()
            limits = dict(line.split("  ", 1) for line in (process / "limits").read_text().splitlines())
            assert limits["Max core file size"].split()[:2] == ["0", "0"]
            assert limits["Max file size"].split()[:2] == ["0", "0"]
            assert limits["Max address space"].split()[:2] == [str(1 << 30)] * 2

    runner.run(scene())


def test_children_end_when_their_parent_is_killed() -> None:
    script = """
import asyncio, os
from service.gateway import uploads
from service.gateway.decoder_pool import DecoderPool
async def scene():
    decoders = DecoderPool(workers=2)
    await decoders.start()
    print(*decoders.pids, flush=True)
    os.kill(os.getpid(), 9)
asyncio.run(scene())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2

    async def all_ended() -> None:
        async with asyncio.timeout(20):
            while any(alive(pid) for pid in pids):
                await asyncio.sleep(0.01)

    asyncio.run(all_ended())
