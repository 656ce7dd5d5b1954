"""What gateway and worker count, where no other test of theirs looks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from models.bundle import MANIFEST, Bundle, Manifest, open_bundle
from service.errors import DeadlineUnmeetable, ServiceError
from service.jobs.redis_server import RedisServer
from service.telemetry import GatewayMetrics, WorkerMetrics
from tests.gateway_answers import metric, png
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
    assert told["maskbit_no_worker_total"] == {("fruit",): 0.0, ("other",): 0.0}
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


def test_workers_of_whom_nothing_is_known_are_not_told_as_none(
    gateway: Gateway, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_redis.stop()
    until(lambda: "no worker" not in gateway.client.post("/generate", json={"class_id": 1}).text)
    monkeypatch.setattr("service.jobs.fleet._FRESH_S", 60.0)
    own_redis.start()
    until(lambda: gateway.client.get(f"/jobs/{'0' * 26}").status_code == 404)
    told = samples(gateway.client.get("/metrics").content)
    assert told["maskbit_redis_up"] == {(): 0.0}
    assert "maskbit_workers" not in told


def test_whoever_asks_for_readiness_is_not_turned_away(gateway: Gateway) -> None:
    line = 'maskbit_shed_total{reason="unavailable"}'
    assert gateway.client.get("/readyz").status_code == 503
    assert metric(gateway, line) == 0
    assert gateway.client.post("/generate", json={"class_id": 1}).status_code == 503
    assert metric(gateway, line) == 1
    assert metric(gateway, 'maskbit_no_worker_total{model="tiny"}') == 1


@pytest.fixture
def other(tiny_manifest: Manifest, tmp_path: Path) -> Bundle:
    """A second model, without weights."""
    (tmp_path / MANIFEST).write_text(replace(tiny_manifest, name="other").to_json())
    return open_bundle(str(tmp_path))


def without_worker(gateway: Gateway) -> dict[str, float]:
    """Requests of each model that were turned away for it."""
    told = samples(gateway.client.get("/metrics").content)["maskbit_no_worker_total"]
    return {model: count for (model,), count in told.items()}


def test_whom_no_worker_serves_is_counted_for_the_model_that_was_asked_for(
    plain_bundle: Bundle, other: Bundle, own_redis: RedisServer
) -> None:
    with gateway_running(plain_bundle, own_redis.url, other) as gateway:
        for model, status in (("other", 503), (None, 503), ("other", 503), ("unknown", 422)):
            body = {"class_id": 1} | ({"model": model} if model else {})
            assert gateway.client.post("/generate", json=body).status_code == status
        gateway.client.get("/readyz")
        gateway.client.get("/info", params={"model": "other"})
        assert without_worker(gateway) == {"tiny": 1, "other": 2}
        worker = FakeWorker(gateway, own_redis.url)
        worker.start()
        try:
            until(lambda: gateway.client.post("/generate", json={"class_id": 1}).status_code == 200)
            before = without_worker(gateway)
            picture = gateway.client.post(
                "/tokenize", params={"model": "other"}, content=png(), headers={"Content-Type": "image/png"}
            )
            assert picture.status_code == 503
            assert without_worker(gateway) == {**before, "other": before["other"] + 1}
        finally:
            worker.stop()


def test_a_missing_redis_is_no_missing_worker(plain_bundle: Bundle, tmp_path: Path) -> None:
    with gateway_running(plain_bundle, f"unix://{tmp_path}/none.sock") as gateway:
        assert gateway.client.post("/generate", json={"class_id": 1}).status_code == 503
        assert metric(gateway, 'maskbit_shed_total{reason="unavailable"}') == 1
        assert without_worker(gateway) == {"tiny": 0}
