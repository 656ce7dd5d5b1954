"""Results on their way from the engine to Redis."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from models.errors import InputError
from models.sampling_config import SamplingConfig
from service.jobs.consumer import Consumer
from service.jobs.job import ClaimedJob, Ending, JobView, NewJob, QueueLimits
from service.jobs.keys import Keys
from service.jobs.payloads import GenerateJob, Pictures
from service.jobs.store import JobStore
from service.telemetry import WorkerMetrics
from service.worker.finisher import MOST, Finished, Finisher
from service.worker.task import NoObserver, Task

pytest_plugins = ["tests.redis_fixtures"]

LIMITS = QueueLimits()
GRID = np.arange(64).reshape(8, 8)


class CountingConsumer(Consumer):
    """Keeps how many endings were recorded together."""

    def settle(self, endings: Sequence[Ending]) -> list[bool]:
        self.sizes.append(len(endings))
        return super().settle(endings)

    sizes: list[int]


@pytest.fixture
def consumer(redis_url: str, keys: Keys) -> Iterator[CountingConsumer]:
    consumer = CountingConsumer(redis_url, keys, "w", LIMITS)
    consumer.sizes = []
    yield consumer
    consumer.close()


def claimed(consumer: Consumer, url: str, keys: Keys, count: int) -> list[ClaimedJob]:
    """So many jobs, begun."""

    async def submit() -> None:
        store = JobStore(url, keys, LIMITS)
        for _ in range(count):
            await store.submit(NewJob(uuid.uuid4().hex, "generate", b"p", fingerprint="f"))
        await store.close()

    asyncio.run(submit())
    jobs = consumer.claim_some(count, generate=True, codec=False, block_s=0)
    assert len(jobs) == count
    return jobs


def views(url: str, keys: Keys, jobs: Sequence[ClaimedJob]) -> list[JobView]:
    async def look() -> list[JobView]:
        store = JobStore(url, keys, LIMITS)
        try:
            return [await store.get(job.id, "public") for job in jobs]
        finally:
            await store.close()

    return asyncio.run(look())


def drawn(job: ClaimedJob, file_format: str = "tokens", size: int = 16) -> Task:
    """A task with its picture."""
    request = GenerateJob((1,), (2,), SamplingConfig(steps=2), file_format)
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3)).astype(np.uint8)
    return Task(job.id, request, grids={0: GRID}, pictures={0: noise})


def finish(
    consumer: Consumer, work: Sequence[Finished], guard: Callable[..., None] | None = None
) -> WorkerMetrics:
    """Record `work`, all of which waits at the beginning."""
    metrics = WorkerMetrics()
    finisher = Finisher(consumer, metrics, NoObserver(), guard or (lambda loop: loop()))
    for one in work:
        finisher.add(one)
    finisher.start()
    finisher.close()
    return metrics


def test_small_results_are_recorded_many_at_a_time(
    redis_url: str, keys: Keys, consumer: CountingConsumer
) -> None:
    jobs = claimed(consumer, redis_url, keys, 100)
    metrics = finish(consumer, [Finished(job, drawn(job), 1.5) for job in jobs])
    assert {view.state for view in views(redis_url, keys, jobs)} == {"D"}
    assert sum(consumer.sizes) == 100
    assert len(consumer.sizes) < 50
    assert max(consumer.sizes) <= MOST
    assert f"maskbit_finish_seconds_count {len(consumer.sizes)}.0" in metrics.render().decode()
    assert consumer.held == []


def test_a_picture_that_takes_long_to_encode_waits_for_no_other(
    redis_url: str, keys: Keys, consumer: CountingConsumer
) -> None:
    jobs = claimed(consumer, redis_url, keys, 6)
    finish(consumer, [Finished(job, drawn(job, "png", 512)) for job in jobs])
    assert consumer.sizes == [1] * 6
    files = [Pictures.unpack(view.result or b"").files for view in views(redis_url, keys, jobs)]
    assert all(file.startswith(b"\x89PNG") for [file] in files)


def test_failures_and_what_cannot_be_encoded_do_not_touch_their_neighbours(
    redis_url: str, keys: Keys, consumer: CountingConsumer
) -> None:
    jobs = claimed(consumer, redis_url, keys, 3)
    good, failed, broken = jobs
    finish(
        consumer,
        [
            Finished(good, drawn(good)),
            Finished(failed, error=InputError("no such class")),
            Finished(broken, drawn(broken, "nonsense")),
        ],
    )
    seen = views(redis_url, keys, jobs)
    assert [view.state for view in seen] == ["D", "E", "E"]
    assert seen[1].error_message == "no such class"
    assert (seen[2].error_code, seen[2].error_message) == (
        "job_failed",
        "the pictures could not be encoded",
    )


def test_whatever_breaks_a_thread_is_told_to_the_guard(
    redis_url: str, keys: Keys, consumer: CountingConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    [job] = claimed(consumer, redis_url, keys, 1)
    told: list[BaseException] = []

    def guard(loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as error:
            told.append(error)

    def broken(endings: Sequence[Ending]) -> list[bool]:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(consumer, "settle", broken)
    finish(consumer, [Finished(job, drawn(job))], guard)
    assert [str(error) for error in told] == ["a mistake"]
