"""The worker with a real Redis: results, failures, cancellation, drain, and what a crash leaves."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from redis import Redis

from models.bundle import Bundle, Manifest
from models.drawing import draw
from models.errors import RuntimeLost
from models.runtime import loading
from models.runtime.base import StepBatch, StepResult
from models.runtime.noop_runtime import NoopRuntime
from models.sampling_config import SamplingConfig
from models.schedule import plan_steps
from service.jobs.consumer import Consumer
from service.jobs.job import ClaimedJob, NewJob, QueueLimits
from service.jobs.keys import Keys
from service.jobs.payloads import GenerateJob, Pictures, TokenGrids
from service.jobs.speed import Speed
from service.jobs.store import JobStore
from service.settings import Settings
from service.telemetry import WorkerMetrics
from service.worker import succession
from service.worker.scheduler import SlotTable
from service.worker.task import NoObserver, Observer, Outcome, Stage, Task
from service.worker.worker import Worker
from tests.gateway_harness import until

LIMITS = QueueLimits(lease_s=1.0)
SAMPLING = SamplingConfig(steps=6, guidance_scale=0.0, noise_temperature=1.0)


class GatedRuntime(NoopRuntime):
    """Steps only while its gate is open; raises for the class `fatal`, by default as a broken GPU does."""

    error: Exception = RuntimeError("CUDA error: device-side assert triggered")

    def __init__(self, bundle: Bundle, fatal: int = -1) -> None:
        super().__init__(bundle)
        self.gate = threading.Event()
        self.fatal = fatal
        self.steps = 0

    def step(self, batch: StepBatch) -> StepResult:
        self.gate.wait(20)
        self.steps += 1
        if self.fatal in batch.labels:
            raise self.error
        return super().step(batch)


@contextmanager
def working(
    url: str,
    keys: Keys,
    runtime: NoopRuntime,
    bundle: Bundle,
    name: str,
    observer: Observer | None = None,
    heir_of: Manifest | None = None,
) -> Iterator[Worker]:
    """A worker in a thread; its crash, if any, is kept in `crashes`. An heir is on no list."""
    consumer = Consumer(url, keys, name, LIMITS)
    worker = Worker(
        consumer,
        runtime,
        bundle,
        table=SlotTable(4),
        lease_s=LIMITS.lease_s,
        drain_s=0.5,
        metrics=WorkerMetrics(),
        observer=observer,
        heir_of=heir_of,
    )
    if heir_of:
        worker.leave()

    def run() -> None:
        try:
            worker.run()
        except (RuntimeError, RuntimeLost) as error:
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
        until(lambda: worker.engine.free_slots() < 4)
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
async def test_a_worker_that_makes_way_still_does_what_redis_had_lost(
    redis_url: str, keys: Keys, tiny_bundle: Bundle
) -> None:
    runtime = GatedRuntime(tiny_bundle)
    store = JobStore(redis_url, keys, LIMITS)
    await store.start()
    with working(redis_url, keys, runtime, tiny_bundle, "w1") as worker:
        await store.submit(job("a"))
        until(lambda: worker.consumer.held)
        worker.leave()
        with Redis.from_url(redis_url) as redis:
            redis.flushall()
        runtime.gate.set()
        view = await store.wait("a")
        until(lambda: not worker.consumer.held)
    await store.close()
    assert view.state == "D"
    assert not crashes


@pytest.mark.anyio
async def test_an_heir_ends_when_a_worker_with_the_right_weights_is_back(
    redis_url: str, keys: Keys, tiny_bundle: Bundle
) -> None:
    runtime = GatedRuntime(tiny_bundle)
    store = JobStore(redis_url, keys, LIMITS)
    await store.start()
    with working(redis_url, keys, runtime, tiny_bundle, "heir", heir_of=tiny_bundle.manifest) as heir:
        await store.submit(job("a"))
        until(lambda: heir.consumer.held)
        with working(redis_url, keys, NoopRuntime(tiny_bundle), tiny_bundle, "back"):
            runtime.gate.set()
            until(heir.consumer._closing.is_set)
            await store.submit(job("b"))
            results = [(await store.wait(name)).result or b"" for name in ("a", "b")]
    await store.close()
    assert [Pictures.unpack(result).bundle for result in results] == [tiny_bundle.ref, ""]
    assert not crashes


@pytest.mark.anyio
async def test_a_server_that_goes_away_counts_against_no_job(
    redis_url: str, keys: Keys, tiny_bundle: Bundle
) -> None:
    store = JobStore(redis_url, keys, LIMITS)
    await store.start()
    await store.submit(job("a", seed=1))
    for number in range(4):
        lost = GatedRuntime(tiny_bundle, fatal=0)
        lost.error = RuntimeLost("Triton is away")
        lost.gate.set()
        with working(redis_url, keys, lost, tiny_bundle, f"w{number}"):
            until(lambda: len(crashes) > number, 15)  # noqa: B023
    with working(redis_url, keys, NoopRuntime(tiny_bundle), tiny_bundle, "last"):
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


@pytest.mark.anyio
async def test_a_job_past_its_deadline_leaves_before_the_next_step(
    redis_url: str, keys: Keys, tiny_bundle: Bundle
) -> None:
    runtime = GatedRuntime(tiny_bundle)
    # Not started: no gateway sweeps, so that the worker has to see by itself that the time is over.
    store = JobStore(redis_url, keys, LIMITS)
    with working(redis_url, keys, runtime, tiny_bundle, "w1") as worker:
        await store.submit(replace(job("late", count=4), deadline_ms=1000))
        until(lambda: worker.engine.free_slots() < 4)
        time.sleep(1.0)
        runtime.gate.set()
        until(lambda: worker.engine.idle)
        # One step may have begun in time.
        assert runtime.steps <= 1
        rendered = worker.metrics.render().decode()
        assert (await store.get("late", "public")).state == "R"
        await store._link.run("sweep")
        until(lambda: not worker._jobs)
    assert (await store.get("late", "public")).state == "X"
    assert f"maskbit_steps_saved_total {4.0 * (6 - runtime.steps)}" in rendered
    await store.close()


@pytest.mark.anyio
async def test_progress_says_how_much_is_still_masked(
    redis_url: str, keys: Keys, tiny_bundle: Bundle
) -> None:
    store = JobStore(redis_url, keys, LIMITS)
    await store.start()
    request = replace(GenerateJob.unpack(job("a").payload), events=True)
    with working(redis_url, keys, NoopRuntime(tiny_bundle), tiny_bundle, "w1"):
        await store.submit(replace(job("a"), payload=request.pack(), wants_events=True))
        await store.wait("a")
        events = []
        async for _, text in store.events("a"):
            events.append(json.loads(text)["data"])
            if len(events) == 5:
                break
    await store.close()
    config = tiny_bundle.manifest.generator
    assert config is not None
    plans = plan_steps(SAMPLING, config.num_tokens * config.codebook_splits)
    assert [event["masked"] for event in events] == [plan.mask_count for plan in plans[:5]]
    assert [event["step"] for event in events] == [1, 2, 3, 4, 5]


@pytest.mark.anyio
async def test_no_end_overtakes_its_previews(redis_url: str, keys: Keys, tiny_bundle: Bundle) -> None:
    store = JobStore(redis_url, keys, LIMITS)
    await store.start()
    request = replace(GenerateJob.unpack(job("a", count=4).payload), events=True, preview_every=1)
    with working(redis_url, keys, NoopRuntime(tiny_bundle), tiny_bundle, "w1"):
        await store.submit(replace(job("a", count=4), payload=request.pack(), wants_events=True))
        await store.wait("a")
        told = [json.loads(text)["data"] for _, text in await store.rest_of_events("a", "0")]
    await store.close()
    assert [(data["image"], data["step"]) for data in told if "preview" in data] == [
        (image, step) for step in range(1, 6) for image in range(4)
    ]


@pytest.mark.anyio
async def test_a_worker_announces_the_speed_that_it_measured(
    redis_url: str, keys: Keys, tiny_bundle: Bundle
) -> None:
    store = JobStore(redis_url, keys, LIMITS)
    await store.start()
    with working(redis_url, keys, NoopRuntime(tiny_bundle), tiny_bundle, "w1"):
        until(lambda: _announced(redis_url, keys))
        [fresh] = await store.workers()
        assert (fresh["slots"], fresh["rows_per_s"], fresh["step_s"]) == (4, None, None)
        await store.submit(job("a", count=8))
        await store.wait("a")
        until(lambda: (_announced(redis_url, keys) or {}).get("rows_per_s"))
        speed = Speed.of(await store.workers())
        await store.close()
    assert 0 < speed.drawing.call_s < 1
    assert speed.drawing.per_s > 1
    assert speed.drawing.images == 8


def _announced(url: str, keys: Keys) -> dict[str, object] | None:
    with Redis.from_url(url) as redis:
        text = redis.get(keys.worker("w1"))
    return json.loads(text) if text else None


def test_an_idle_worker_ends_although_its_reads_would_go_on_for_longer(
    redis_url: str, keys: Keys, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CLAIM_BLOCK_S", "IDLE_WAIT_S"):
        monkeypatch.setattr(f"service.worker.worker.{name}", 60.0)
    # Redis ends a blocking read after 5 s by itself.
    monkeypatch.setattr("service.jobs.consumer.BLOCK_MAX_S", 60.0)
    consumer = Consumer(redis_url, keys, "w1", LIMITS)
    worker = Worker(
        consumer,
        NoopRuntime(tiny_bundle),
        tiny_bundle,
        table=SlotTable(4),
        lease_s=LIMITS.lease_s,
        drain_s=30.0,
        metrics=WorkerMetrics(),
    )
    thread = threading.Thread(target=worker.run)
    thread.start()
    with Redis.from_url(redis_url) as redis:
        until(lambda: sum("b" in client["flags"] for client in redis.client_list()) == 3)
        worker.stop()
        thread.join(20)
        assert not thread.is_alive()
        assert not redis.exists(keys.worker("w1"))


class Spy(NoObserver):
    """An observer that notes what happens to jobs."""

    def __init__(self) -> None:
        self.heard: dict[str, list[str]] = defaultdict(list)

    def claimed(self, job: ClaimedJob) -> None:
        self.heard[job.id].append(f"claimed {job.trace}")

    def worked(self, stage: Stage, tasks: Sequence[Task], rows: int, began_ns: int, ended_ns: int) -> None:
        for task in tasks:
            self.heard[task.id].append(f"{stage} {task.trace}")

    def ended(self, job: ClaimedJob, outcome: Outcome) -> None:
        self.heard[job.id].append(outcome)


@pytest.mark.anyio
async def test_an_observer_follows_every_job_from_claim_to_end(
    redis_url: str, keys: Keys, tiny_bundle: Bundle
) -> None:
    store, spy, runtime = JobStore(redis_url, keys, LIMITS), Spy(), GatedRuntime(tiny_bundle)
    await store.start()
    with working(redis_url, keys, runtime, tiny_bundle, "w1", spy) as worker:
        await store.submit(replace(job("dropped"), trace="c"))
        until(lambda: worker.engine.free_slots() < 4)
        await store.cancel("dropped", "public")
        until(lambda: "dropped" in spy.heard["dropped"])
        runtime.gate.set()
        await store.submit(replace(job("done"), trace="a"))
        await store.submit(NewJob("failed", "generate", b"\xc1", fingerprint="f", trace="b"))
        await store.wait("done")
        await store.wait("failed")
    await store.close()
    assert spy.heard["done"] == ["claimed a", *["step a"] * 6, "finish a", "done"]
    assert spy.heard["failed"] == ["claimed b", "failed"]
    # The step that was under way is told later.
    assert spy.heard["dropped"][:2] == ["claimed c", "dropped"]
    assert len(spy.heard["dropped"]) <= 3


def test_a_worker_is_announced_only_when_its_runtime_is_warm(
    redis_url: str, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keys(tiny_bundle.manifest.name, tiny_bundle.revision)
    announced: list[bool] = []

    class Cold(NoopRuntime):
        def warm_up(self) -> None:
            with Redis.from_url(redis_url) as redis:
                announced.append(bool(redis.exists(keys.workers)))

    monkeypatch.setitem(loading._LOADERS, "noop", lambda bundle, wish: Cold(bundle))
    settings = Settings(redis_url=redis_url, bundle=str(tiny_bundle.path), runtime="noop")
    process = succession.Succession(settings, WorkerMetrics(), None)
    thread = threading.Thread(target=process.run)
    thread.start()
    with Redis.from_url(redis_url) as redis:
        until(lambda: redis.exists(keys.workers))
        assert announced == [False]
        process.stop()
        thread.join(20)
    assert not thread.is_alive()
