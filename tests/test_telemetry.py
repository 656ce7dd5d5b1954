"""What gateway and worker count, where no other test of theirs looks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from models.bundle import Bundle
from service.errors import DeadlineUnmeetable, ServiceError
from service.jobs.redis_server import RedisServer
from service.telemetry import GatewayMetrics, WorkerMetrics
from tests.gateway_answers import metric
from tests.gateway_harness import FakeWorker, Gateway, gateway_running, until

OF_REDIS = (
    "maskbit_queue_depth",
    "maskbit_oldest_job_age_seconds",
    "maskbit_dead_letters",
    "maskbit_workers",
)


def samples(text: bytes) -> dict[str, dict[tuple[str, ...], float]]:
    """Values by name and labels' values."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def codes(kind: type[ServiceError] = ServiceError) -> Iterator[tuple[type[ServiceError], str]]:
    yield kind, kind.code
    for one in kind.__subclasses__():
        yield from codes(one)


def test_what_may_be_counted_begins_at_zero() -> None:
    told = samples(GatewayMetrics(["fruit", "other"]).render())
    refusals = {code for kind, code in codes() if kind.status in (429, 503) or kind is DeadlineUnmeetable}
    assert told["maskbit_shed_total"] == {(code,): 0.0 for code in refusals}
    assert set(told["maskbit_jobs_total"].values()) == {0.0}
    assert len(told["maskbit_jobs_total"]) == 2 * 3 * 4


def test_a_worker_counts_its_life_from_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("service.telemetry.monotonic", lambda: now_s)
    metrics = WorkerMetrics()
    now_s = 107.5
    assert samples(metrics.render())["maskbit_worker_seconds_total"] == {(): 7.5}


@pytest.fixture
def gateway(plain_bundle: Bundle, own_redis: RedisServer) -> Iterator[Gateway]:
    with gateway_running(plain_bundle, own_redis.url) as running:
        yield running


def test_dead_letters_and_living_workers_are_those_in_redis(gateway: Gateway, own_redis: RedisServer) -> None:
    assert metric(gateway, 'maskbit_dead_letters{model="tiny"}') == 0
    with Redis.from_url(own_redis.url) as redis:
        for _ in range(3):
            redis.xadd(gateway.keys.dead, {"id": "a job"})
    assert metric(gateway, 'maskbit_dead_letters{model="tiny"}') == 3
    assert metric(gateway, 'maskbit_workers{model="tiny"}') == 0
    worker = FakeWorker(gateway, own_redis.url)
    worker.start()
    try:
        until(lambda: metric(gateway, 'maskbit_workers{model="tiny"}') == 1)
    finally:
        worker.stop()
    until(lambda: metric(gateway, 'maskbit_workers{model="tiny"}') == 0)


def test_without_redis_nothing_is_told_of_it_but_that_it_is_away(
    gateway: Gateway, own_redis: RedisServer
) -> None:
    def told() -> dict[str, dict[tuple[str, ...], float]]:
        return samples(gateway.client.get("/metrics").content)

    assert told()["maskbit_redis_up"] == {(): 1.0}
    own_redis.stop()
    until(lambda: told()["maskbit_redis_up"] == {(): 0.0})
    assert not set(OF_REDIS) & set(told())
    own_redis.start()
    until(lambda: told()["maskbit_redis_up"] == {(): 1.0})
    assert set(OF_REDIS) <= set(told())


def test_whoever_asks_for_readiness_is_not_turned_away(gateway: Gateway) -> None:
    line = 'maskbit_shed_total{reason="unavailable"}'
    assert gateway.client.get("/readyz").status_code == 503
    assert metric(gateway, line) == 0
    assert gateway.client.post("/generate", json={"class_id": 1}).status_code == 503
    assert metric(gateway, line) == 1
