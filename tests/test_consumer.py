import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis import Redis

from service.jobs.consumer import Consumer
from service.jobs.job import ClaimedJob, Ending, JobView, NewJob, QueueLimits
from service.jobs.keys import GROUP, Keys
from service.jobs.redis_server import RedisServer
from service.jobs.store import JobStore

pytest_plugins = ["tests.redis_fixtures"]

LEASE_S = 0.3
LIMITS = QueueLimits(lease_s=LEASE_S, result_bytes=1000)
Hire = Callable[[], Consumer]


@pytest.fixture
def hire(redis_url: str, keys: Keys) -> Iterator[Hire]:
    """Makes workers."""
    hired: list[Consumer] = []

    def one() -> Consumer:
        hired.append(Consumer(redis_url, keys, f"worker-{uuid.uuid4().hex}", LIMITS))
        return hired[-1]

    yield one
    for consumer in hired:
        consumer.close()


def submit(url: str, keys: Keys, **changes: Any) -> str:
    fields: dict[str, Any] = {"id": uuid.uuid4().hex, "kind": "generate", "payload": b"p", "fingerprint": "f"}

    async def work() -> str:
        store = JobStore(url, keys, LIMITS)
        try:
            return await store.submit(NewJob(**{**fields, **changes}))
        finally:
            await store.close()

    return asyncio.run(work())


def view(url: str, keys: Keys, job_id: str) -> JobView:
    async def work() -> JobView:
        store = JobStore(url, keys, LIMITS)
        try:
            return await store.get(job_id, "public")
        finally:
            await store.close()

    return asyncio.run(work())


def cancel(url: str, keys: Keys, job_id: str) -> bool:
    async def work() -> bool:
        store = JobStore(url, keys, LIMITS)
        try:
            return await store.cancel(job_id, "public")
        finally:
            await store.close()

    return asyncio.run(work())


def claim(consumer: Consumer, block_s: float = 0.0) -> ClaimedJob | None:
    return consumer.claim(generate=True, codec=True, block_s=block_s)


def must_claim(consumer: Consumer) -> ClaimedJob:
    job = claim(consumer, 5.0)
    assert job is not None
    return job


def must_reclaim(consumer: Consumer) -> ClaimedJob:
    """The lease has to run out first: that is the one thing here that takes time by itself."""
    deadline = time.monotonic() + 20 * LEASE_S
    while time.monotonic() < deadline:
        job = consumer.reclaim()
        if job is not None:
            return job
        time.sleep(LEASE_S / 5)
    raise AssertionError("no job was reclaimed")


def test_a_claimed_job_carries_what_was_submitted(redis_url: str, keys: Keys, hire: Hire) -> None:
    before_ms = time.time() * 1000
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    changes = {"payload": b"\x00\xff", "rows": 3, "wants_events": True, "trace": trace}
    before_s = time.monotonic()
    job_id = submit(redis_url, keys, deadline_ms=5000, **changes)
    job = must_claim(hire())
    assert job.trace == trace
    assert before_s + 4.99 <= job.deadline_s <= time.monotonic() + 5.01
    assert (job.id, job.kind, job.payload, job.rows) == (job_id, "generate", b"\x00\xff", 3)
    assert (job.attempt, job.solo, job.wants_events, job.queue) == (1, False, True, keys.interactive)
    assert before_ms + 4999 <= job.deadline_ms <= time.time() * 1000 + 5001


def test_a_waiting_worker_is_woken_by_a_job(redis_url: str, keys: Keys, hire: Hire) -> None:
    consumer, found = hire(), []
    thread = threading.Thread(target=lambda: found.append(claim(consumer, 5.0)))
    thread.start()
    started = time.monotonic()
    job_id = submit(redis_url, keys)
    thread.join()
    assert [job.id for job in found if job] == [job_id]
    assert time.monotonic() - started < 4.5


def test_a_job_is_claimed_once(redis_url: str, keys: Keys, hire: Hire) -> None:
    submit(redis_url, keys)
    assert claim(hire()) is not None
    assert claim(hire()) is None


def test_one_claim_in_eight_serves_the_bulk_queue_first(redis_url: str, keys: Keys, hire: Hire) -> None:
    for _ in range(16):
        submit(redis_url, keys)
        submit(redis_url, keys, priority="bulk")
    consumer = hire()
    queues = [must_claim(consumer).queue for _ in range(16)]
    assert [i for i, queue in enumerate(queues, 1) if queue == keys.bulk] == [8, 16]


def test_codec_jobs_do_not_wait_for_generation(redis_url: str, keys: Keys, hire: Hire) -> None:
    submit(redis_url, keys)
    codec = submit(redis_url, keys, kind="tokenize", priority="bulk")
    consumer = hire()
    job = consumer.claim(generate=False, codec=True, block_s=0)
    assert job is not None
    assert (job.id, job.queue) == (codec, keys.codec)
    assert consumer.claim(generate=False, codec=True, block_s=0) is None
    assert consumer.claim(generate=False, codec=False, block_s=5) is None


def test_several_jobs_are_claimed_in_order_and_no_more_than_asked(
    redis_url: str, keys: Keys, hire: Hire
) -> None:
    ids = [submit(redis_url, keys) for _ in range(5)]
    consumer = hire()
    first = consumer.claim_some(3, generate=True, codec=True, block_s=0)
    rest = consumer.claim_some(3, generate=True, codec=True, block_s=0)
    assert [job.id for job in first] == ids[:3]
    assert [job.id for job in rest] == ids[3:]


def claim_waiting(consumer: Consumer, limit: int, block_s: float = 5.0) -> list[str]:
    """Ids of the jobs that one call brings."""
    return [job.id for job in consumer.claim_some(limit, generate=True, codec=False, block_s=block_s)]


def test_whoever_waited_for_a_job_takes_at_once_what_came_with_it(
    redis_url: str, keys: Keys, hire: Hire
) -> None:
    consumer = hire()
    lone = submit(redis_url, keys)
    assert claim_waiting(consumer, 4) == [lone]
    ids = [submit(redis_url, keys) for _ in range(5)]
    assert claim_waiting(consumer, 4) == ids[:4]
    assert claim_waiting(consumer, 4) == ids[4:]


def test_a_job_that_comes_beside_the_awaited_one_is_left_to_others_without_room_for_it(
    redis_url: str, keys: Keys, hire: Hire
) -> None:
    consumer, other = hire(), hire()
    lone = submit(redis_url, keys)
    assert claim_waiting(consumer, 4) == [lone]
    ids = {submit(redis_url, keys), submit(redis_url, keys, priority="bulk")}
    [taken] = claim_waiting(consumer, 1)
    [left] = claim_waiting(other, 1, block_s=0.0)
    assert {taken, left} == ids
    assert [job.attempt for job in (*consumer.held, *other.held)] == [1, 1, 1]


def test_what_another_worker_released_is_found_after_one_wait_for_new_jobs(
    redis_url: str, keys: Keys, hire: Hire
) -> None:
    consumer, other = hire(), hire()
    lone = submit(redis_url, keys)
    assert claim_waiting(consumer, 4) == [lone]
    released = submit(redis_url, keys)
    other.release(must_claim(other))
    assert claim_waiting(consumer, 4, block_s=0.05) == []
    assert claim_waiting(consumer, 4) == [released]


def test_results_and_errors_are_recorded_together(redis_url: str, keys: Keys, hire: Hire) -> None:
    ids = [submit(redis_url, keys) for _ in range(3)]
    consumer = hire()
    good, bad, large = consumer.claim_some(3, generate=True, codec=False, block_s=0)
    endings = [
        Ending(good, b"result"),
        Ending(bad, error_code="job_failed", error_message="no such class"),
        Ending(large, b"x" * 1001),
    ]
    assert consumer.settle(endings) == [True] * 3
    assert consumer.settle(endings) == [False] * 3
    seen = [view(redis_url, keys, job_id) for job_id in ids]
    assert [(one.state, one.error_code) for one in seen] == [
        ("D", None),
        ("E", "job_failed"),
        ("E", "result_too_large"),
    ]
    assert consumer.held == []


def test_the_second_finish_is_discarded(redis_url: str, keys: Keys, hire: Hire) -> None:
    job_id = submit(redis_url, keys)
    consumer = hire()
    job = must_claim(consumer)
    assert consumer.finish(job, b"first")
    assert not consumer.finish(job, b"second")
    assert not consumer.fail(job, "broken", "too late")
    assert view(redis_url, keys, job_id).result == b"first"


def test_a_failed_job_keeps_code_and_message(redis_url: str, keys: Keys, hire: Hire) -> None:
    job_id = submit(redis_url, keys)
    consumer = hire()
    assert consumer.fail(must_claim(consumer), "job_failed", "no such class")
    seen = view(redis_url, keys, job_id)
    assert (seen.state, seen.error_code, seen.error_message) == ("E", "job_failed", "no such class")


def test_a_result_over_the_limit_becomes_an_error(redis_url: str, keys: Keys, hire: Hire) -> None:
    job_id = submit(redis_url, keys)
    consumer = hire()
    assert consumer.finish(must_claim(consumer), b"x" * 1001)
    assert view(redis_url, keys, job_id).error_code == "result_too_large"


def test_a_cancelled_job_is_never_done(redis_url: str, keys: Keys, hire: Hire) -> None:
    job_id = submit(redis_url, keys)
    consumer = hire()
    job = must_claim(consumer)
    assert cancel(redis_url, keys, job_id)
    assert consumer.hints(1.0) == [job_id]
    assert consumer.beat([job]) == {job_id}
    assert not consumer.finish(job, b"late")
    assert view(redis_url, keys, job_id).state == "C"


def test_hints_return_empty_when_nothing_is_cancelled(hire: Hire) -> None:
    assert hire().hints(0.01) == []


def test_a_silent_workers_job_is_run_alone_by_another(redis_url: str, keys: Keys, hire: Hire) -> None:
    submit(redis_url, keys)
    silent, other = hire(), hire()
    job = must_claim(silent)
    assert other.reclaim() is None
    again = must_reclaim(other)
    assert (again.id, again.attempt, again.solo) == (job.id, 2, True)


def test_a_job_is_not_stolen_back(redis_url: str, keys: Keys, hire: Hire, raw: Redis) -> None:
    submit(redis_url, keys)
    paused, other = hire(), hire()
    job = must_claim(paused)
    again = must_reclaim(other)
    assert paused.beat([job]) == {job.id}
    assert other.beat([again]) == set()
    pending: Any = raw.xpending_range(keys.interactive, GROUP, "-", "+", 9)
    assert [entry["consumer"].decode() for entry in pending] == [other.worker_id]


def test_a_late_result_counts_but_a_late_error_does_not(redis_url: str, keys: Keys, hire: Hire) -> None:
    job_id = submit(redis_url, keys)
    paused, other = hire(), hire()
    job = must_claim(paused)
    again = must_reclaim(other)
    assert not paused.fail(job, "broken", "from an old attempt")
    assert view(redis_url, keys, job_id).state == "R"
    assert paused.finish(job, b"same by the seed contract")
    assert not other.finish(again, b"same by the seed contract")


def test_beats_keep_a_job_for_longer_than_a_lease(redis_url: str, keys: Keys, hire: Hire) -> None:
    submit(redis_url, keys)
    busy, other = hire(), hire()
    job = must_claim(busy)
    until = time.monotonic() + 3 * LEASE_S
    while time.monotonic() < until:
        assert busy.beat([job]) == set()
        assert other.reclaim() is None
        time.sleep(LEASE_S / 10)
    assert busy.finish(job, b"done")


def test_a_worker_does_not_reclaim_what_it_still_runs(redis_url: str, keys: Keys, hire: Hire) -> None:
    submit(redis_url, keys)
    consumer = hire()
    job = must_claim(consumer)
    time.sleep(2 * LEASE_S)
    assert consumer.reclaim() is None
    assert consumer.finish(job, b"done")


def test_poison_is_given_up_and_an_innocent_beside_it_survives(
    redis_url: str, keys: Keys, hire: Hire, raw: Redis
) -> None:
    poison = submit(redis_url, keys, payload=b"poison")
    heavy = submit(redis_url, keys, payload=bytes(1 << 20))
    innocent = submit(redis_url, keys, payload=b"innocent")
    crashed = hire()
    assert len(crashed.claim_some(3, generate=True, codec=True, block_s=0)) == 3
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and raw.zcard(keys.open):
        consumer = hire()
        job = consumer.reclaim()
        if job is None:
            time.sleep(LEASE_S / 5)
        elif job.payload == b"innocent":
            assert job.solo
            assert consumer.finish(job, b"fine")
    assert view(redis_url, keys, innocent).state == "D"
    given_up = view(redis_url, keys, poison)
    assert (given_up.state, given_up.error_code, given_up.attempts) == ("E", "poisoned", 3)
    assert 0 < raw.ttl(keys.dead) <= 7 * 86_400
    dead: Any = raw.xrange(keys.dead)
    kept = {f[b"id"].decode(): (f.get(b"payload"), f.get(b"payload_bytes")) for _, f in dead}
    assert kept == {poison: (b"poison", None), heavy: (None, b"1048576")}
    assert raw.xlen(keys.interactive) == 0


def test_a_released_job_goes_to_another_worker_at_once_and_uncounted(
    redis_url: str, keys: Keys, hire: Hire
) -> None:
    job_id = submit(redis_url, keys)
    for _ in range(5):
        leaving = hire()
        job = must_claim(leaving)
        assert (job.attempt, job.solo) == (1, False)
        leaving.release(job)
        assert view(redis_url, keys, job_id).state == "Q"
        assert not leaving.held
    last = hire()
    assert last.finish(must_claim(last), b"done")


def test_a_released_job_is_found_by_reclaim_too(redis_url: str, keys: Keys, hire: Hire) -> None:
    submit(redis_url, keys)
    leaving = hire()
    leaving.release(must_claim(leaving))
    job = hire().reclaim()
    assert job is not None
    assert (job.attempt, job.solo) == (1, False)


def test_releasing_a_suspect_keeps_it_suspect(redis_url: str, keys: Keys, hire: Hire) -> None:
    submit(redis_url, keys)
    must_claim(hire())
    for _ in range(4):
        leaving = hire()
        job = claim(leaving) or must_reclaim(leaving)
        assert (job.attempt, job.solo) == (2, True)
        leaving.release(job)


def test_a_worker_that_died_between_read_and_begin_casts_no_suspicion(
    redis_url: str, keys: Keys, hire: Hire, raw: Redis
) -> None:
    submit(redis_url, keys)
    assert claim(hire()) is not None
    job_id = submit(redis_url, keys)
    raw.xreadgroup(GROUP, "ghost", {keys.interactive: ">"}, count=1)
    found: dict[str, ClaimedJob] = {}
    while len(found) < 2:
        job = must_reclaim(hire())
        found[job.id] = job
    assert (found[job_id].attempt, found[job_id].solo) == (1, False)


def test_a_job_past_its_deadline_is_not_begun(redis_url: str, keys: Keys, hire: Hire) -> None:
    job_id = submit(redis_url, keys, deadline_ms=1)
    time.sleep(0.01)
    assert claim(hire()) is None
    seen = view(redis_url, keys, job_id)
    assert (seen.state, seen.error_code, seen.attempts) == ("X", "deadline_passed", 0)
    assert seen.finished_ms > seen.created_ms


def test_a_claim_whose_answer_was_lost_is_found_again_uncounted(
    redis_url: str, keys: Keys, hire: Hire, raw: Redis
) -> None:
    consumer = hire()
    held_id = submit(redis_url, keys)
    assert must_claim(consumer).id == held_id
    lost_id = submit(redis_url, keys)
    # The same worker's claim over another connection: its answer never reaches the consumer.
    twin = Consumer(redis_url, keys, consumer.worker_id, LIMITS)
    assert must_claim(twin).id == lost_id
    twin.close()
    blocked: list[ClaimedJob | None] = []
    thread = threading.Thread(target=lambda: blocked.append(claim(consumer, 5.0)))
    thread.start()
    while not _kill_blocked_clients(raw):
        time.sleep(0.005)
    thread.join()
    assert blocked == [None]
    assert not consumer.available
    job = must_claim(consumer)
    assert (job.id, job.attempt, job.solo) == (lost_id, 1, False)
    assert consumer.available
    assert {job.id for job in consumer.held} == {held_id, lost_id}


def _kill_blocked_clients(raw: Redis) -> int:
    clients: Any = raw.client_list()
    blocked = [client for client in clients if "b" in client["flags"]]
    for client in blocked:
        raw.client_kill_filter(_id=client["id"])
    return len(blocked)


def test_losing_everything_does_not_stop_a_worker(redis_url: str, keys: Keys, hire: Hire, raw: Redis) -> None:
    submit(redis_url, keys)
    consumer = hire()
    job = must_claim(consumer)
    raw.flushall()
    assert consumer.beat([job]) == {job.id}
    assert not consumer.finish(job, b"unknown now")
    assert consumer.reclaim() is None
    assert claim(consumer, 0.05) is None
    job_id = submit(redis_url, keys)
    assert must_claim(consumer).id == job_id


def test_finish_waits_for_redis_to_come_back(own_redis: RedisServer, keys: Keys) -> None:
    job_id = submit(own_redis.url, keys)
    limits = QueueLimits(lease_s=30)
    consumer = Consumer(own_redis.url, keys, "w", limits)
    job = must_claim(consumer)
    own_redis.stop()
    finished: list[bool] = []
    thread = threading.Thread(target=lambda: finished.append(consumer.finish(job, b"kept")))
    thread.start()
    assert claim(consumer, 0.05) is None
    assert consumer.beat([job]) == set()
    assert not consumer.available
    own_redis.start()
    thread.join()
    assert finished == [True]
    assert view(own_redis.url, keys, job_id).result == b"kept"
    consumer.close()


def test_an_interrupt_ends_the_wait_for_redis(own_redis: RedisServer, keys: Keys) -> None:
    submit(own_redis.url, keys)
    consumer = Consumer(own_redis.url, keys, "w", LIMITS)
    job = must_claim(consumer)
    own_redis.stop()
    thread = threading.Thread(target=consumer.finish, args=(job, b"lost"))
    thread.start()
    consumer.interrupt()
    thread.join(5)
    assert not thread.is_alive()
    consumer.close()


def test_an_interrupted_worker_still_hands_in_what_a_redis_that_answers_takes(
    redis_url: str, keys: Keys, hire: Hire
) -> None:
    ids = [submit(redis_url, keys) for _ in range(2)]
    first, second = hire(), hire()
    done, given_back = must_claim(first), must_claim(first)
    first.interrupt()

    assert first.finish(done, b"result")
    first.release(given_back)

    assert view(redis_url, keys, ids[0]).result == b"result"
    again = must_claim(second)
    assert (again.id, again.attempt) == (ids[1], 1)


def test_retiring_deletes_a_consumer_only_when_nothing_is_pending(
    redis_url: str, keys: Keys, hire: Hire, raw: Redis
) -> None:
    idle, busy = hire(), hire()
    for consumer in (idle, busy):
        submit(redis_url, keys)
        must_claim(consumer)
    assert idle.finish(idle.held[0], b"done")
    for consumer in (idle, busy):
        consumer.announce({"kind": "test"})
        consumer.retire()
    names = [c["name"].decode() for c in raw.xinfo_consumers(keys.interactive, GROUP)]
    assert names == [busy.worker_id]
    assert raw.zcard(keys.workers) == 0


def test_consumers_of_dead_workers_are_cleared_away(
    redis_url: str, keys: Keys, hire: Hire, raw: Redis
) -> None:
    dead, alive = hire(), hire()
    for consumer in (dead, alive):
        submit(redis_url, keys)
        assert consumer.finish(must_claim(consumer), b"done")
    assert len(raw.xinfo_consumers(keys.interactive, GROUP)) == 2
    time.sleep(5 * LEASE_S)
    alive.announce({})
    assert [c["name"].decode() for c in raw.xinfo_consumers(keys.interactive, GROUP)] == [alive.worker_id]


def test_progress_is_capped_and_does_not_stay(redis_url: str, keys: Keys, hire: Hire, raw: Redis) -> None:
    consumer = hire()
    for step in range(100):
        consumer.publish("some-job", b"%d" % step)
    events: Any = raw.xrange(keys.events("some-job"))
    assert [int(fields[b"event"]) for _, fields in events] == list(range(36, 100))
    assert 0 < raw.pttl(keys.events("some-job")) <= 60_000
