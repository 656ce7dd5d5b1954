"""The worker with a real Redis: results, failures, cancellation, drain, and what a crash leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgpack
import numpy as np
import pytest
from redis import Redis

from models.bundle import Bundle
from models.drawing import draw
from models.runtime.base import StepBatch, StepResult
from models.runtime.noop_runtime import NoopRuntime
from models.sampling_config import SamplingConfig
from service.jobs.consumer import Consumer
from service.jobs.job import NewJob, QueueLimits
from service.jobs.keys import Keys
from service.jobs.payloads import GenerateJob, Pictures, TokenGrids
from service.jobs.store import JobStore
from service.telemetry import WorkerMetrics
from service.worker.worker import Worker
from tests.gateway_harness import until

LIMITS = QueueLimits(lease_s=1.0)
SAMPLING = SamplingConfig(steps=6, guidance_scale=0.0, noise_temperature=1.0)


class GatedRuntime(NoopRuntime):
    """Steps only while its gate is open; raises for the class `fatal` as a broken GPU does."""

    def __init__(self, bundle: Bundle, fatal: int = -1) -> None:
        super().__init__(bundle)
        self.gate = threading.Event()
        self.fatal = fatal
        self.steps = 0

    def step(self, batch: StepBatch) -> StepResult:
        self.gate.wait(20)
        self.steps += 1
        if self.fatal in batch.labels:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return super().step(batch)


@contextmanager
def working(url: str, keys: Keys, runtime: NoopRuntime, bundle: Bundle, name: str) -> Iterator[Worker]:
    """A worker in a thread; its crash, if any, is kept in `crashes`."""
    consumer = Consumer(url, keys, name, LIMITS)
    worker = Worker(
        consumer, runtime, bundle, slots=4, lease_s=LIMITS.lease_s, drain_s=0.5, metrics=WorkerMetrics()
    )

    def run() -> None:
        try:
            worker.run()
        except RuntimeError as error:
            crashes.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    yield worker
    worker.stop()
    thread.join(20)
    assert not thread.is_alive()


crashes: list[str] = []


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def no_crashes_yet() -> None:
    crashes.clear()


def job(name: str, seed: int = 0, label: int = 0, count: int = 1) -> NewJob:
    request = GenerateJob((label,) * count, tuple(range(seed, seed + count)), SAMPLING, "tokens")
    return NewJob(name, "generate", request.pack(), fingerprint=name, rows=count)


def drawn(result: bytes) -> list[np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    return [TokenGrids.unpack(file).array()[0] for file in Pictures.unpack(result).files]


@pytest.mark.anyio
async def test_a_job_comes_back_with_the_tokens_of_the_plain_loop(
    redis_url: str, keys: Keys, tiny_bundle: Bundle
) -> None:
    runtime = NoopRuntime(tiny_bundle)
    store = JobStore(redis_url, keys, LIMITS)
    await store.start()
    with working(redis_url, keys, runtime, tiny_bundle, "w1"):
        await store.submit(job("a", seed=3, label=2, count=6))
        view = await store.wait("a")
    await store.close()
    assert view.state == "D"
    assert view.result is not None
    expected = draw(runtime, tiny_bundle.manifest, SAMPLING, [2] * 6, range(3, 9))
    np.testing.assert_array_equal(np.stack(drawn(view.result)), expected)


@pytest.mark.anyio
async def test_a_malformed_payload_fails_its_job_and_the_worker_lives_on(
    redis_url: str, keys: Keys, tiny_bundle: Bundle
) -> None:
    store = JobStore(redis_url, keys, LIMITS)
    await store.start()
    with working(redis_url, keys, NoopRuntime(tiny_bundle), tiny_bundle, "w1"):
        for name, payload in {
            "x": b"\xc1",
            "y": msgpack.packb([1]),
            "z": msgpack.packb({"seeds": 1}),
        }.items():
            await store.submit(NewJob(name, "generate", payload, fingerprint=name))
            view = await store.wait(name)
            assert (view.state, view.error_code) == ("E", "job_failed")
            assert "malformed" in (view.error_message or "")
        await store.submit(job("good"))
        assert (await store.wait("good")).state == "D"
    await store.close()


@pytest.mark.anyio
async def test_a_cancelled_job_frees_its_slots_before_the_next_step(
    redis_url: str, keys: Keys, tiny_bundle: Bundle
) -> None:
    runtime = GatedRuntime(tiny_bundle)
    store = JobStore(redis_url, keys, LIMITS)
    await store.start()
    with working(redis_url, keys, runtime, tiny_bundle, "w1") as worker:
        await store.submit(job("unwanted", count=4))
        until(lambda: worker.engine.free_slots() == 0)
        assert await store.cancel("unwanted", "public")
        until(lambda: not worker._jobs)
        runtime.gate.set()
        until(lambda: worker.engine.free_slots() == 4)
        # One step may have been under way when the hint came.
        assert runtime.steps <= 1
        assert (await store.wait("unwanted")).state == "C"
    await store.close()


@pytest.mark.anyio
async def test_a_drained_worker_gives_its_job_back_uncounted_and_another_one_ends_it(
    redis_url: str, keys: Keys, tiny_bundle: Bundle
) -> None:
    stuck, store = GatedRuntime(tiny_bundle), JobStore(redis_url, keys, LIMITS)
    await store.start()
    await store.submit(job("a", seed=9))
    with working(redis_url, keys, stuck, tiny_bundle, "w1") as worker:
        until(lambda: worker.engine.free_slots() == 3)
        worker.stop()
        time.sleep(0.7)
        stuck.gate.set()
    with working(redis_url, keys, NoopRuntime(tiny_bundle), tiny_bundle, "w2"):
        view = await store.wait("a")
    await store.close()
    assert (view.state, view.attempts) == ("D", 1)


@pytest.mark.anyio
async def test_a_job_that_breaks_the_gpu_is_given_up_while_the_innocent_beside_it_is_done(
    redis_url: str, keys: Keys, tiny_bundle: Bundle
) -> None:
    store = JobStore(redis_url, keys, LIMITS)
    await store.start()
    await store.submit(job("innocent", seed=1))
    await store.submit(job("poison", label=4))
    for number in range(8):
        runtime = GatedRuntime(tiny_bundle, fatal=4)
        runtime.gate.set()
        with working(redis_url, keys, runtime, tiny_bundle, f"w{number}"):
            until(lambda: len(crashes) > number or _open(redis_url, keys) == 0, 15)  # noqa: B023
        if _open(redis_url, keys) == 0:
            break
    innocent, poison = await store.wait("innocent"), await store.wait("poison")
    await store.close()
    assert innocent.state == "D"
    assert (poison.state, poison.error_code) == ("E", "poisoned")
    assert crashes
    assert all("CUDA error" in crash for crash in crashes)


@pytest.mark.anyio
async def test_a_lost_job_is_taken_over_although_the_queue_never_empties(
    redis_url: str, keys: Keys, tiny_bundle: Bundle
) -> None:
    store = JobStore(redis_url, keys, LIMITS)
    await store.start()
    await store.submit(job("lost"))
    dead = Consumer(redis_url, keys, "dead", LIMITS)
    assert dead.claim(generate=True, codec=False, block_s=1) is not None
    dead.close()
    for number in range(150):
        await store.submit(job(f"later-{number}", count=4))

    class Slow(NoopRuntime):
        def step(self, batch: StepBatch) -> StepResult:
            time.sleep(0.02)
            return super().step(batch)

    with working(redis_url, keys, Slow(tiny_bundle), tiny_bundle, "w1"):
        view = await store.wait("lost")
        waiting = (await store.depth()).queues["interactive"].waiting
    await store.close()
    assert view.state == "D"
    assert waiting > 0


def _open(url: str, keys: Keys) -> int:
    with Redis.from_url(url) as redis:
        return int(redis.zcard(keys.open))
