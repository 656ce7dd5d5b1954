import asyncio
import os
import random
import signal
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from redis import Redis

from service.errors import (
    DeadlineUnmeetable,
    IdempotencyConflict,
    NotFound,
    PayloadTooLarge,
    QueueFull,
    ResultExpired,
    TenantLimit,
    Unavailable,
)
from service.jobs.consumer import Consumer
from service.jobs.job import TERMINAL, NewJob, QueueLimits
from service.jobs.keys import GROUP, Keys
from service.jobs.redis_server import RedisServer
from service.jobs.speed import Speed
from service.jobs.store import JobStore

pytest_plugins = ["tests.redis_fixtures"]
pytestmark = pytest.mark.anyio

LIMITS = QueueLimits(payload_bytes=1000)
Open = Callable[..., Awaitable[JobStore]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def opened(redis_url: str, keys: Keys) -> AsyncIterator[Open]:
    """Starts gateways."""
    stores: list[JobStore] = []

    async def one(limits: QueueLimits = LIMITS) -> JobStore:
        stores.append(JobStore(redis_url, keys, limits))
        await stores[-1].start()
        return stores[-1]

    yield one
    for store in stores:
        await store.close()


@pytest.fixture
def worker(redis_url: str, keys: Keys) -> Iterator[Consumer]:
    consumer = Consumer(redis_url, keys, "worker", LIMITS)
    yield consumer
    consumer.close()


def new(**changes: Any) -> NewJob:
    fields = {"id": uuid.uuid4().hex, "kind": "generate", "payload": b"p", "fingerprint": "f", **changes}
    return NewJob(**fields)


def work_one(worker: Consumer, result: bytes = b"result") -> None:
    # A read that waits while Redis is emptied ends without a job.
    job = worker.claim(generate=True, codec=True, block_s=5) or worker.claim(
        generate=True, codec=True, block_s=5
    )
    assert job is not None
    assert worker.finish(job, result)


def assert_at_rest(raw: Redis, keys: Keys) -> None:
    """Invariant I5."""
    assert raw.zcard(keys.open) == 0
    assert [raw.xlen(queue) for queue in keys.queues] == [0, 0, 0]
    for queue in keys.queues:
        groups: Any = raw.xinfo_groups(queue) if raw.exists(queue) else []
        assert [group["pending"] for group in groups] in ([], [0])
    assert list(raw.scan_iter(f"{keys.tenant('')}*")) == []
    assert list(raw.scan_iter(f"*{keys.revision}*released")) == []


async def test_what_the_worker_finished_is_what_the_waiter_gets(opened: Open, worker: Consumer) -> None:
    store = await opened()
    for size in (0, 10, 65_536, 65_537, 1_000_000):
        job = new(tenant="someone")
        result = random.randbytes(size)
        assert await store.submit(job) == job.id
        waiting = asyncio.create_task(store.wait(job.id))
        await asyncio.to_thread(work_one, worker, result)
        view = await waiting
        assert (view.id, view.kind, view.state, view.tenant) == (job.id, "generate", "D", "someone")
        assert (view.result, view.attempts, view.error_code, view.position) == (result, 1, None, None)
        assert 0 < view.created_ms <= view.started_ms <= view.finished_ms
        assert await store.wait(job.id) == view == await store.get(job.id, "someone")


async def test_another_gateways_job_can_be_waited_for(opened: Open, worker: Consumer) -> None:
    first, second = await opened(), await opened()
    job_id = await first.submit(new())
    waiting = asyncio.create_task(second.wait(job_id))
    await asyncio.to_thread(work_one, worker)
    assert (await waiting).result == b"result"


async def test_a_queued_job_knows_how_many_are_ahead(opened: Open, worker: Consumer) -> None:
    store = await opened()
    ids = [await store.submit(new()) for _ in range(4)]
    await store.submit(new(kind="tokenize"))
    assert [(await store.get(one, "public")).position for one in ids] == [0, 1, 2, 3]
    worker.claim(generate=True, codec=False, block_s=0)
    await store.cancel(ids[2], "public")
    views = [await store.get(one, "public") for one in ids]
    assert [(view.state, view.position) for view in views] == [("R", None), ("Q", 0), ("C", None), ("Q", 1)]


async def test_no_more_than_a_hundred_ahead_are_counted(opened: Open) -> None:
    store = await opened()
    ids = await asyncio.gather(*(store.submit(new()) for _ in range(105)))
    positions = [(await store.get(one, "public")).position for one in ids]
    assert positions == [*range(100), *[100] * 5]


async def test_the_open_limit_is_reached_and_never_exceeded(opened: Open, raw: Redis, keys: Keys) -> None:
    limits = QueueLimits(open_jobs=20)
    stores = [await opened(limits), await opened(limits)]
    results = await asyncio.gather(
        *(stores[i % 2].submit(new(tenant=f"t{i}")) for i in range(50)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, QueueFull)]
    assert len(refused) == 30
    assert sum(isinstance(result, str) for result in results) == 20
    assert raw.zcard(keys.open) == raw.xlen(keys.interactive) == 20
    assert all(error.retry_after_s is not None and 1 <= error.retry_after_s <= 60 for error in refused)


async def test_a_tenants_limit_is_reached_and_never_exceeded(opened: Open, worker: Consumer) -> None:
    store = await opened(QueueLimits(tenant_jobs=5))
    results = await asyncio.gather(
        *(store.submit(new(tenant="greedy")) for _ in range(50)), return_exceptions=True
    )
    assert sum(isinstance(result, str) for result in results) == 5
    assert sum(isinstance(result, TenantLimit) for result in results) == 45
    await store.submit(new(tenant="modest"))
    await asyncio.to_thread(work_one, worker)
    await store.submit(new(tenant="greedy"))
    with pytest.raises(TenantLimit):
        await store.submit(new(tenant="greedy"))


async def test_kept_results_count_until_they_are_forgotten(opened: Open, worker: Consumer) -> None:
    store = await opened(QueueLimits(results=2))
    kept, passing = new(), new(keep_result=False)
    for job in (kept, passing):
        await store.submit(job)
        await asyncio.to_thread(work_one, worker)
    with pytest.raises(QueueFull):
        await store.submit(new())
    await store.forget(kept.id)
    with pytest.raises(QueueFull):
        await store.submit(new())
    await store.forget(passing.id)
    await store.submit(new())
    with pytest.raises(NotFound):
        await store.get(passing.id, "public")
    assert (await store.get(kept.id, "public")).result == b"result"


async def test_an_unfinished_or_idempotent_job_is_not_forgotten(opened: Open, worker: Consumer) -> None:
    store = await opened()
    idempotent, unfinished = new(keep_result=False, idempotency_key="k"), new(keep_result=False)
    await store.submit(idempotent)
    await asyncio.to_thread(work_one, worker)
    await store.submit(unfinished)
    await asyncio.gather(store.forget(idempotent.id), store.forget(unfinished.id))
    assert (await store.get(idempotent.id, "public")).state == "D"
    assert (await store.get(unfinished.id, "public")).state == "Q"


def speed(rows_per_s: float = 100.0, images_per_s: float = 10.0, slots: int = 1) -> Speed:
    announced = {
        "slots": slots,
        "rows_per_s": rows_per_s,
        "step_s": 0.001,
        "images_per_s": images_per_s,
        "codec_s": 0.001,
        "codec_images": 1,
    }
    return Speed.of([announced])


async def test_retry_after_follows_backlog_and_measured_speed(opened: Open) -> None:
    limits = QueueLimits(open_jobs=40, tenant_jobs=39)
    store = await opened(limits)
    for number in range(40):
        bulk = "bulk" if number % 2 else "interactive"
        await store.submit(new(cost=50, priority=bulk, tenant=f"t{number // 39}"))
    for tenant, refusal_type in (("t0", QueueFull), ("t1", QueueFull)):
        with pytest.raises(refusal_type) as refusal:
            await store.submit(new(tenant=tenant), speed(rows_per_s=100.0))
        assert refusal.value.retry_after_s == 20.0
    for rows_per_s, expected_s in ((1e6, 1.0), (1.0, 60.0), (0.0, 10.0)):
        with pytest.raises(QueueFull) as refusal:
            await store.submit(new(), speed(rows_per_s))
        assert refusal.value.retry_after_s == expected_s


async def test_a_tenant_at_its_limit_is_told_when_the_backlog_is_done(opened: Open) -> None:
    store = await opened(QueueLimits(tenant_jobs=3))
    for _ in range(3):
        await store.submit(new(kind="tokenize", cost=20))
    with pytest.raises(TenantLimit) as refusal:
        await store.submit(new(), speed(images_per_s=10.0))
    assert refusal.value.retry_after_s == 6.0


async def test_a_job_is_refused_when_and_only_when_the_backlog_leaves_it_no_time(opened: Open) -> None:
    store = await opened()
    measured = speed(rows_per_s=100.0)
    # Two of these are begun at once, so that six wait for 600 rows, which take 6 s, and run for 1 s.
    for _ in range(8):
        await store.submit(new(cost=100), measured)
    with pytest.raises(DeadlineUnmeetable, match=r"7000 ms at least.*6999 ms") as refusal:
        await store.submit(new(cost=100, deadline_ms=6999), measured)
    assert (refusal.value.status, refusal.value.retry_after_s) == (504, 0.001)
    await store.submit(new(cost=100, deadline_ms=7000), measured)
    # Each stream has an order of its own, and what was never measured is never refused.
    await store.submit(new(cost=100, deadline_ms=1000, priority="bulk"), measured)
    await store.submit(new(kind="tokenize", deadline_ms=1000), measured)
    await store.submit(new(cost=100, deadline_ms=1), Speed())
    await store.submit(new(cost=100, deadline_ms=1))


async def test_a_job_that_is_too_slow_even_alone_is_not_told_to_come_again(opened: Open) -> None:
    store = await opened()
    with pytest.raises(DeadlineUnmeetable, match=r"50000 ms at least") as refusal:
        await store.submit(new(cost=5000, deadline_ms=40_000), speed())
    assert refusal.value.retry_after_s is None


async def test_a_repeated_request_is_not_judged_again(opened: Open) -> None:
    store, slow = await opened(), speed(rows_per_s=0.01)
    job_id = await store.submit(new(idempotency_key="k"))
    assert await store.submit(new(idempotency_key="k"), slow) == job_id
    with pytest.raises(DeadlineUnmeetable):
        await store.submit(new(idempotency_key="another"), slow)


async def test_the_refused_leave_nothing_behind(opened: Open, raw: Redis, keys: Keys) -> None:
    store = await opened()
    for _ in range(5):
        with pytest.raises(DeadlineUnmeetable):
            await store.submit(new(cost=10**6, tenant="t"), speed())
    assert_at_rest(raw, keys)
    assert waiting_rows(raw, keys) == {}


def waiting_rows(raw: Redis, keys: Keys) -> dict[str, int]:
    """What Redis counts as waiting, stream by stream, without the empty ones."""
    counts: Any = raw.hgetall(keys.waiting)
    return {queue.decode(): int(rows) for queue, rows in counts.items() if int(rows)}


def queued_rows(raw: Redis, keys: Keys) -> dict[str, int]:
    """The same, counted job by job."""
    rows: dict[str, int] = {}
    for name in raw.scan_iter(f"{keys.job('')}*"):
        state, queue, cost = (value.decode() for value in raw.hmget(name, "state", "queue", "cost"))  # type: ignore[union-attr]
        if state == "Q":
            rows[queue] = rows.get(queue, 0) + int(cost)
    return rows


@pytest.mark.parametrize("seed", range(3))
async def test_the_waiting_rows_are_those_of_the_queued_jobs_whatever_happens(
    redis_url: str, raw: Redis, keys: Keys, seed: int
) -> None:
    rng = random.Random(seed)
    limits = QueueLimits(lease_s=0.001)
    # Not started: nobody sweeps here but this test.
    store = JobStore(redis_url, keys, limits)
    workers = [Consumer(redis_url, keys, f"worker{k}", limits) for k in range(3)]
    ids: list[str] = []

    async def submit() -> None:
        kind = rng.choice(["generate", "generate", "tokenize"])
        priority = rng.choice(["interactive", "bulk"])
        deadline_ms = rng.choice([1, 60_000, 60_000, 60_000])
        job = new(kind=kind, priority=priority, cost=rng.randrange(1, 200), deadline_ms=deadline_ms)
        ids.append(await store.submit(job))
        if rng.random() < 0.1:
            await store.submit(job)

    async def work() -> None:
        worker = rng.choice(workers)
        held = worker.held
        what = rng.random()
        if not held or what < 0.4:
            worker.claim_some(rng.randrange(1, 4), generate=True, codec=True, block_s=0)
        elif what < 0.55:
            worker.release(rng.choice(held))
        elif what < 0.7:
            worker.finish(rng.choice(held), b"result")
        elif what < 0.8:
            worker.fail(rng.choice(held), "job_failed", "by chance")
        elif what < 0.9:
            worker.reclaim()
        else:
            worker.beat(held)

    async def cancel() -> None:
        if ids:
            await store.cancel(rng.choice(ids), "public")

    async def sweep() -> None:
        await store._link.run("sweep")

    seen_waiting = False
    for _ in range(400):
        await rng.choices([submit, work, cancel, sweep], [4, 6, 1, 1])[0]()
        assert waiting_rows(raw, keys) == queued_rows(raw, keys)
        seen_waiting = seen_waiting or bool(waiting_rows(raw, keys))
    assert seen_waiting
    for job_id in ids:
        await store.cancel(job_id, "public")
    assert waiting_rows(raw, keys) == {}
    assert_at_rest(raw, keys)
    await store.close()
    for worker in workers:
        worker.close()


async def test_a_queued_job_knows_when_it_may_be_done(opened: Open, worker: Consumer) -> None:
    store, measured = await opened(), speed(rows_per_s=100.0)
    ids = [await store.submit(new(cost=100)) for _ in range(4)]
    views = [await store.get(one, "public") for one in ids]
    # Two are in hand at once; each then takes a second of the only worker.
    assert [measured.eta_ms(view) for view in views] == [1000, 1000, 1000, 2000]
    assert [Speed().eta_ms(view) for view in views] == [None] * 4
    worker.claim(generate=True, codec=False, block_s=0)
    assert measured.eta_ms(await store.get(ids[0], "public")) is None


async def test_submitting_an_id_twice_is_submitting_it_once(opened: Open, raw: Redis, keys: Keys) -> None:
    store, job = await opened(), new()
    assert await asyncio.gather(*(store.submit(job) for _ in range(10))) == [job.id] * 10
    assert raw.xlen(keys.interactive) == 1


async def test_one_idempotency_key_gives_one_id(opened: Open, raw: Redis, keys: Keys) -> None:
    stores = [await opened(), await opened()]
    jobs = [new(idempotency_key="order 66") for _ in range(20)]
    ids = await asyncio.gather(*(stores[i % 2].submit(job) for i, job in enumerate(jobs)))
    assert len(set(ids)) == 1
    assert raw.xlen(keys.interactive) == 1
    with pytest.raises(IdempotencyConflict, match="order 66"):
        await stores[0].submit(new(idempotency_key="order 66", fingerprint="other"))
    assert await stores[0].submit(new(idempotency_key="order 66", tenant="other")) != ids[0]


async def test_a_job_is_cancelled_once_and_only_by_its_tenant(
    opened: Open, raw: Redis, keys: Keys, worker: Consumer
) -> None:
    store = await opened()
    queued, running = await store.submit(new()), await store.submit(new(kind="tokenize"))
    claimed = worker.claim(generate=False, codec=True, block_s=0)
    assert claimed is not None
    for job_id in (queued, running):
        with pytest.raises(NotFound):
            await store.cancel(job_id, "stranger")
        waiting = asyncio.create_task(store.wait(job_id))
        assert await store.cancel(job_id, "public")
        assert not await store.cancel(job_id, "public")
        assert (await waiting).state == "C"
    assert not worker.finish(claimed, b"late")
    assert worker.claim(generate=True, codec=True, block_s=0) is None
    assert_at_rest(raw, keys)


async def test_a_deadline_ends_queued_and_running_jobs_but_not_before_it(
    opened: Open, raw: Redis, keys: Keys, worker: Consumer
) -> None:
    store = await opened()
    running = await store.submit(new(deadline_ms=300))
    assert worker.claim(generate=True, codec=True, block_s=0) is not None
    queued = await store.submit(new(deadline_ms=300))
    for view in await asyncio.gather(store.wait(running), store.wait(queued)):
        assert (view.state, view.error_code) == ("X", "deadline_passed")
        assert view.created_ms + 300 <= view.finished_ms <= view.created_ms + 3000
    assert worker.hints(1.0) == [running]
    assert_at_rest(raw, keys)


async def test_more_jobs_than_one_sweep_takes_expire_together(opened: Open, raw: Redis, keys: Keys) -> None:
    store = await opened()
    ids = await asyncio.gather(*(store.submit(new(deadline_ms=100)) for _ in range(250)))
    views = await asyncio.gather(*(store.wait(one) for one in ids))
    assert {view.state for view in views} == {"X"}
    assert_at_rest(raw, keys)


async def test_an_expired_result_is_gone_for_its_tenant_and_unknown_to_others(
    opened: Open, raw: Redis, keys: Keys, worker: Consumer
) -> None:
    store = await opened(QueueLimits(result_ttl_s=0.05))
    job_id = await store.submit(new(idempotency_key="k"))
    await asyncio.to_thread(work_one, worker)
    while raw.zcard(keys.results):
        await asyncio.sleep(0.02)
    with pytest.raises(ResultExpired):
        await store.get(job_id, "public")
    for name, tenant in ((job_id, "stranger"), ("no-such-job", "public")):
        with pytest.raises(NotFound):
            await store.get(name, tenant)
    with pytest.raises(NotFound):
        await store.wait("no-such-job")
    assert await store.submit(new(idempotency_key="k", fingerprint="another")) != job_id


async def test_too_large_a_payload_is_refused(opened: Open) -> None:
    store = await opened()
    with pytest.raises(PayloadTooLarge, match=r"1001.*1000"):
        await store.submit(new(payload=b"x" * 1001))


async def test_progress_is_followed_and_resumed(opened: Open, worker: Consumer) -> None:
    store = await opened()
    job_id = await store.submit(new())
    for step in range(3):
        worker.publish(job_id, b"step %d" % step)

    async def take(count: int, last_event_id: str = "0") -> list[tuple[str, bytes]]:
        taken = []
        async for event in store.events(job_id, last_event_id):
            taken.append(event)
            if len(taken) == count:
                break
        return taken

    first = await take(3)
    assert [event for _, event in first] == [b"step 0", b"step 1", b"step 2"]
    resumed = asyncio.create_task(take(2, first[1][0]))
    again = asyncio.create_task(take(4))
    await asyncio.sleep(0)
    await asyncio.to_thread(worker.publish, job_id, b"step 3")
    assert [event for _, event in await resumed] == [b"step 2", b"step 3"]
    assert [event for _, event in await again] == [b"step 0", b"step 1", b"step 2", b"step 3"]


async def test_depth_and_workers_tell_how_things_are(opened: Open, worker: Consumer) -> None:
    store = await opened()
    assert await store.workers() == []
    worker.announce({"slots": 4, "bundle": "fruit"})
    assert await store.workers() == [{"slots": 4, "bundle": "fruit", "id": "worker"}]
    for kind, priority in (("generate", "interactive"), ("generate", "interactive"), ("generate", "bulk")):
        await store.submit(new(kind=kind, priority=priority))
    job = worker.claim(generate=True, codec=True, block_s=0)
    assert job is not None
    depth = await store.depth()
    counts = {name: (queue.waiting, queue.running) for name, queue in depth.queues.items()}
    assert counts == {"interactive": (1, 1), "bulk": (1, 0), "codec": (0, 0)}
    assert (depth.open, depth.results) == (3, 0)
    assert 0 <= depth.queues["interactive"].oldest_age_s < 60
    worker.retire()
    assert await store.workers() == []


async def test_answers_stay_with_their_callers_when_callers_are_cancelled(opened: Open) -> None:
    store = await opened()
    ids = [await store.submit(new(tenant=f"tenant-{i}")) for i in range(20)]

    async def ask(number: int) -> None:
        view = await store.get(ids[number], f"tenant-{number}")
        assert (view.id, view.tenant) == (ids[number], f"tenant-{number}")

    for _ in range(10):
        tasks = [asyncio.create_task(ask(number % 20)) for number in range(100)]
        for task in random.sample(tasks, 50):
            asyncio.get_running_loop().call_later(random.uniform(0, 0.01), task.cancel)
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert outcome is None or isinstance(outcome, asyncio.CancelledError)


async def test_a_submit_whose_caller_left_is_accounted_for(
    opened: Open, raw: Redis, keys: Keys, worker: Consumer
) -> None:
    store = await opened()
    task = asyncio.create_task(store.submit(new(id="left")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(work_one, worker)
    assert (await store.wait("left")).state == "D"
    assert_at_rest(raw, keys)


async def test_jobs_that_redis_lost_are_queued_again(
    opened: Open, raw: Redis, keys: Keys, worker: Consumer
) -> None:
    store = await opened()
    ids = [await store.submit(new(idempotency_key="k", tenant=f"t{i}")) for i in range(3)]
    claimed = worker.claim(generate=True, codec=True, block_s=0)
    assert claimed is not None
    waits = [asyncio.create_task(store.wait(one)) for one in ids]
    raw.flushall()
    # Somebody repeats the first request while Redis is still empty; both then run.
    repeated = await store.submit(new(idempotency_key="k", tenant="t0"))
    for _ in range(4):
        await asyncio.to_thread(work_one, worker)
    views = await asyncio.gather(*waits, store.wait(repeated))
    assert [view.id for view in views] == [*ids, repeated]
    assert {view.state for view in views} == {"D"}
    assert not worker.finish(claimed, b"from before")
    assert_at_rest(raw, keys)


async def test_lost_jobs_come_back_before_new_ones_of_any_gateway(
    opened: Open, raw: Redis, keys: Keys, worker: Consumer
) -> None:
    limits = QueueLimits(open_jobs=4, tenant_jobs=3)
    first, second = await opened(limits), await opened(limits)
    lost = [await first.submit(new(tenant=f"t{k // 3}")) for k in range(4)]
    waits = [asyncio.create_task(first.wait(one)) for one in lost]
    stopped = asyncio.Event()
    turned_away = 0

    async def press(store: JobStore) -> None:
        nonlocal turned_away
        while not stopped.is_set():
            try:
                await store.submit(new(tenant="t0"))
            except (QueueFull, TenantLimit):
                turned_away += 1
            await asyncio.sleep(0.01)

    raw.flushall()
    newer = [await second.submit(new(tenant=f"t{k // 3}")) for k in range(4)]
    pressing = [asyncio.create_task(press(store)) for store in (first, second)]
    while not raw.exists(*(name for name in keys.shared if name.endswith(":owed"))):
        await asyncio.sleep(0.01)
    begun: list[str] = []
    for _ in range(2 * len(lost)):
        claimed = await asyncio.to_thread(worker.claim, generate=True, codec=True, block_s=5)
        assert claimed is not None
        begun.append(claimed.id)
        worker.finish(claimed, b"result")
        assert raw.zcard(keys.open) <= limits.open_jobs
    stopped.set()
    await asyncio.gather(*pressing)
    assert turned_away > 0
    assert begun[:4] == newer
    assert set(begun[4:]) == set(lost)
    assert {view.state for view in await asyncio.gather(*waits)} == {"D"}


async def test_a_job_that_is_just_being_submitted_does_not_count_as_lost(
    opened: Open,
    raw: Redis,
    keys: Keys,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("service.jobs.own_jobs._TICK_S", 0.0)
    store = await opened()

    async def client() -> None:
        for _ in range(15):
            job = new(keep_result=False)
            await store.submit(job)
            await store.cancel(job.id, "public")
            await store.wait(job.id)
            await store.forget(job.id)

    # More than there are connections, so that some submits wait for one while Redis is asked.
    await asyncio.gather(*(client() for _ in range(60)))
    assert "lost" not in caplog.text
    assert_at_rest(raw, keys)


async def test_a_result_that_redis_loses_before_it_was_fetched_is_made_again(
    opened: Open, raw: Redis, worker: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, result, losses = await opened(), random.randbytes(100_000), [1]
    look = store._own._look

    async def look_too_late(job_id: str) -> None:
        if losses:
            raw.flushall()
            losses.clear()
        await look(job_id)

    monkeypatch.setattr(store._own, "_look", look_too_late)
    waiting = asyncio.create_task(store.wait(await store.submit(new())))
    for _ in range(2):
        await asyncio.to_thread(work_one, worker, result)
    assert (await waiting).result == result
    assert not losses


async def test_a_lost_job_whose_deadline_passed_meanwhile_expires(opened: Open, raw: Redis) -> None:
    store = await opened()
    job_id = await store.submit(new(deadline_ms=200))
    waiting = asyncio.create_task(store.wait(job_id))
    raw.flushall()
    view = await waiting
    assert (view.state, view.error_code) == ("X", "deadline_passed")


async def test_closing_a_gateway_ends_its_waits(opened: Open) -> None:
    store = await opened()
    waiting = asyncio.create_task(store.wait(await store.submit(new())))
    await asyncio.sleep(0)
    await store.close()
    with pytest.raises(Unavailable):
        await waiting


async def test_without_redis_calls_fail_clearly_and_recover_by_themselves(
    own_redis: RedisServer, keys: Keys
) -> None:
    store = JobStore(own_redis.url, keys, LIMITS)
    worker = Consumer(own_redis.url, keys, "w", LIMITS)
    await store.start()
    before = await store.submit(new())
    waiting = asyncio.create_task(store.wait(before))
    assert own_redis.pid is not None
    os.kill(own_redis.pid, signal.SIGKILL)
    for call in (store.ping(), store.submit(new()), store.get(before, "public"), store.depth()):
        with pytest.raises(Unavailable) as refusal:
            await call
        assert refusal.value.retry_after_s is not None
    while own_redis.alive:
        await asyncio.sleep(0.01)
    await asyncio.to_thread(own_redis.start)
    await store.ping()
    await asyncio.to_thread(work_one, worker)
    assert (await waiting).result == b"result"
    await store.close()
    worker.close()


async def test_a_full_memory_is_unavailable_and_running_jobs_still_end(
    opened: Open, raw: Redis, keys: Keys, worker: Consumer
) -> None:
    store = await opened()
    waiting = asyncio.create_task(store.wait(await store.submit(new())))
    try:
        job = worker.claim(generate=True, codec=True, block_s=0)
        assert job is not None
        raw.config_set("maxmemory", 1)
        with pytest.raises(Unavailable, match="does not answer"):
            await store.submit(new())
        assert worker.finish(job, b"result")
        assert (await waiting).result == b"result"
    finally:
        raw.config_set("maxmemory", 0)
    await store.submit(new())


CHAOS = QueueLimits(open_jobs=60, lease_s=0.5, result_ttl_s=60)


def _chaotic_worker(url: str, keys: Keys, seed: int, stop: threading.Event, ended: list[str]) -> None:
    """Finishes, fails, releases, forgets about, or finishes late, at random; under a new name each time."""
    rng = random.Random(seed)
    while not stop.is_set():
        consumer = Consumer(url, keys, uuid.uuid4().hex, CHAOS)
        for _ in range(rng.randrange(1, 20)):
            job = consumer.reclaim() or consumer.claim(generate=True, codec=True, block_s=0.05)
            if job is None:
                continue
            fate = rng.random()
            # Losing its worker again and again would rightly make any job count as poison.
            if fate < 0.05 and job.attempt == 1:
                continue
            if fate < 0.15:
                consumer.release(job)
            elif fate < 0.25 and consumer.fail(job, "job_failed", "by chance"):
                ended.append(job.id)
            else:
                if fate > 0.97 and job.attempt == 1:
                    time.sleep(1.5 * CHAOS.lease_s)
                if consumer.finish(job, job.payload[::-1]):
                    ended.append(job.id)
        consumer.close()


async def test_under_chaos_each_accepted_job_ends_exactly_once(
    opened: Open, redis_url: str, raw: Redis, keys: Keys
) -> None:
    stores = [await opened(CHAOS), await opened(CHAOS)]
    ended: list[str] = []
    stop, most_open = threading.Event(), 0
    threads = [
        threading.Thread(target=_chaotic_worker, args=(redis_url, keys, seed, stop, ended))
        for seed in range(3)
    ]
    for thread in threads:
        thread.start()
    rng = random.Random(7)
    refused = 0

    async def client(number: int) -> tuple[str, str]:
        nonlocal refused
        store, kind = rng.choice(stores), rng.choice(["generate", "tokenize"])
        job = new(kind=kind, payload=b"payload %d" % number, tenant=f"t{number % 5}")
        while True:
            try:
                await store.submit(job)
                break
            except QueueFull:
                refused += 1
                await asyncio.sleep(rng.uniform(0, 0.2))
        if rng.random() < 0.1:
            await asyncio.sleep(rng.uniform(0, 0.1))
            await store.cancel(job.id, job.tenant)
        view = await rng.choice(stores).wait(job.id)
        assert view.state in TERMINAL
        assert view.state != "E" or view.error_code == "job_failed"
        assert view.state != "D" or view.result == job.payload[::-1]
        return job.id, view.state

    async def watch() -> None:
        nonlocal most_open
        while True:
            most_open = max(most_open, raw.zcard(keys.open))
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    try:
        outcomes = dict(await asyncio.gather(*(client(number) for number in range(300))))
    finally:
        watching.cancel()
        stop.set()
        for thread in threads:
            await asyncio.to_thread(thread.join)
    assert len(ended) == len(set(ended))
    assert set(ended) == {one for one, state in outcomes.items() if state in "DE"}
    assert refused > 0
    assert most_open == CHAOS.open_jobs
    assert_at_rest(raw, keys)
    for store in stores:
        for job_id, state in rng.sample(sorted(outcomes.items()), 20):
            with pytest.raises(NotFound):
                await store.get(job_id, "stranger")
            assert raw.hget(keys.job(job_id), "state") == state.encode()
    assert raw.xlen(keys.dead) == 0
    groups: Any = raw.xinfo_groups(keys.interactive)
    assert [group["name"].decode() for group in groups] == [GROUP]


async def test_memory_is_flat_when_results_are_forgotten(
    opened: Open, raw: Redis, keys: Keys, worker: Consumer
) -> None:
    store = await opened()
    sizes = []
    for _ in range(2):
        for _ in range(50):
            job = new(keep_result=False, idempotency_key=None)
            await store.submit(job)
            waiting = asyncio.create_task(store.wait(job.id))
            await asyncio.to_thread(work_one, worker)
            await waiting
            forgetting = store.forget(job.id)
        await forgetting
        (inbox,) = raw.scan_iter(keys.inbox("*"))
        # All but the last note are cut off at the next look.
        while raw.xlen(inbox) > 1:
            await asyncio.sleep(0.05)
        names = list(raw.scan_iter(f"*{keys.revision}*"))
        sizes.append((len(names), sum(raw.memory_usage(name) or 0 for name in names)))
    assert sizes[0][0] == sizes[1][0]
    assert sizes[1][1] <= sizes[0][1] + 2000
