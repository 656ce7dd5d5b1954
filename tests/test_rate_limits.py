"""Requests a minute, images a day: counted in Redis for all gateways, given back for what is turned away."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import time
import uuid
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from redis import Redis

from models.bundle import Bundle
from service.errors import QuotaExceeded, RateLimited, Unavailable
from service.jobs.allowance import Allowance, Allowances
from service.jobs.keys import ALLOWANCES
from tests.gateway_harness import FakeWorker, Gateway, gateway_running, until

DAY_MS = 86_400_000
ORDER = {"class_id": 1, "format": "tokens"}


def picture() -> str:
    """A PNG in base64."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


PICTURE = picture()
PAINT = {"image": PICTURE, "mask": [[1] * 8] * 8, "class_id": 1}


def key_entry(name: str, limits: str) -> str:
    return f"{name}:{hashlib.sha256(name.encode()).hexdigest()}:{limits}"


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


@pytest.fixture
def tenant() -> str:
    return f"t{uuid.uuid4().hex}"


def served(gateway: Gateway, redis_url: str) -> FakeWorker:
    worker = FakeWorker(gateway, redis_url)
    worker.start()
    until(lambda: gateway.client.get("/readyz").status_code == 200)
    return worker


@pytest.fixture
def busy(gateway: Gateway, gateway_redis: str) -> Iterator[FakeWorker]:
    """A worker for the gateways of the test."""
    worker = served(gateway, gateway_redis)
    yield worker
    worker.stop()


# -- over HTTP --------------------------------------------------------------------------------------------


def test_two_gateways_share_one_rate(plain_bundle: Bundle, gateway_redis: str, tenant: str) -> None:
    keys = key_entry(tenant, "requests_per_minute=6:burst=4")
    with (
        gateway_running(plain_bundle, gateway_redis, api_keys=keys) as one,
        gateway_running(plain_bundle, gateway_redis, api_keys=keys) as two,
    ):
        replies = [
            gateway.client.get("/info", headers=bearer(tenant)) for gateway in (one, two, one, two, one)
        ]
        assert [reply.status_code for reply in replies] == [200] * 4 + [429]
        assert [reply.headers.get("ratelimit-remaining") for reply in replies[:4]] == ["3", "2", "1", "0"]
        assert replies[0].headers["ratelimit-limit"] == "4"
        assert [int(reply.headers["ratelimit-reset"]) for reply in replies[:4]] == [10, 20, 30, 40]
        refused = replies[4]
        assert (refused.headers["ratelimit-limit"], refused.headers["ratelimit-remaining"]) == ("4", "0")
        # As the last one was told, but for the time of this test.
        assert 30 < int(refused.headers["ratelimit-reset"]) <= 40
        assert 1 <= int(refused.headers["retry-after"]) <= 10
        assert refused.json()["error"]["code"] == "rate_limited"
        assert "6 requests a minute" in refused.json()["error"]["message"]
        assert 'maskbit_shed_total{reason="rate_limited"} 1.0' in one.client.get("/metrics").text


def test_images_of_a_day_are_bounded_and_what_is_turned_away_costs_nothing(
    plain_bundle: Bundle, gateway_redis: str, tenant: str, busy: FakeWorker
) -> None:
    keys = key_entry(tenant, "images_per_day=5:concurrent_jobs=1")
    with gateway_running(plain_bundle, gateway_redis, api_keys=keys) as gateway:

        def post(n: int, **headers: str) -> tuple[int, str]:
            reply = gateway.client.post("/generate", json=ORDER | {"n": n}, headers=bearer(tenant) | headers)
            return reply.status_code, reply.text

        assert post(99)[0] == 422
        for _ in range(2):
            assert post(3, **{"Idempotency-Key": "once"})[0] == 200
        code, text = post(3)
        assert code == 429
        assert "5 a day (UTC) are allowed, 2 are left" in text
        busy.gate.clear()
        held = gateway.client.post("/jobs", json=ORDER | {"kind": "generate"}, headers=bearer(tenant))
        assert held.status_code == 202
        code, text = post(1)
        assert (code, "unfinished" in text) == (429, True)
        busy.gate.set()
        location = held.headers["location"]
        until(lambda: gateway.client.get(location, headers=bearer(tenant)).status_code == 200)
        assert post(1)[0] == 200
        assert post(1)[0] == 429
        refused = gateway.client.post("/generate", json=ORDER, headers=bearer(tenant))
        assert refused.json()["error"]["code"] == "quota_exceeded"
        assert 0 < int(refused.headers["retry-after"]) <= DAY_MS // 1000


def test_a_request_of_several_jobs_costs_the_pictures_of_its_answer(
    plain_bundle: Bundle, gateway_redis: str, tenant: str, busy: FakeWorker
) -> None:
    keys = key_entry(tenant, "images_per_day=1000")
    mix = {"op": "mix", "bits": [0], "with": {"image": PICTURE}}
    edit = {"image": PICTURE, "operations": [mix]}
    paint = PAINT | {"n": 3}
    with (
        gateway_running(plain_bundle, gateway_redis, api_keys=keys) as gateway,
        Redis.from_url(gateway_redis) as redis,
    ):

        def cost(path: str, body: Mapping[str, object], **headers: str) -> int:
            def spent() -> int:
                return int(redis.hget(ALLOWANCES + tenant, "images") or 0)

            before = spent()
            reply = gateway.client.post(path, json=body, headers=bearer(tenant) | headers)
            assert reply.status_code in (200, 202), reply.text
            return spent() - before

        once = {"Idempotency-Key": "once"}
        assert [cost("/edit", edit, **once) for _ in range(3)] == [1, 0, 0]
        assert cost("/reconstruct", {"image": PICTURE}) == 1
        assert cost("/generate", paint) == 3
        assert cost("/jobs", paint | {"kind": "generate"}) == 3
        assert cost("/tokenize", {"image": PICTURE}) == 1
        # Where tokens are the answer, those of two pictures are two.
        assert cost("/edit", edit | {"format": "tokens"}) == 2


def test_a_wrong_idempotency_key_is_refused_before_a_job_runs(
    plain_bundle: Bundle, gateway_redis: str, tenant: str, busy: FakeWorker
) -> None:
    with gateway_running(plain_bundle, gateway_redis) as gateway:
        for path, body in (("/generate", PAINT), ("/jobs", PAINT | {"kind": "generate"})):
            reply = gateway.client.post(path, json=body, headers={"Idempotency-Key": "k" * 256})
            assert (reply.status_code, "Idempotency-Key" in reply.text) == (422, True)
    assert busy.claimed == []


def test_a_request_that_the_service_could_not_take_is_given_back(
    plain_bundle: Bundle, gateway_redis: str, tenant: str
) -> None:
    keys = key_entry(tenant, "requests_per_minute=1:burst=1")
    with gateway_running(plain_bundle, gateway_redis, api_keys=keys) as gateway:
        gateway.app.state.desk.draining = True
        for _ in range(3):
            reply = gateway.client.post("/generate", json=ORDER, headers=bearer(tenant))
            assert reply.status_code == 503
        gateway.app.state.desk.draining = False
        assert gateway.client.get("/classes", headers=bearer(tenant)).status_code == 200
        assert gateway.client.get("/classes", headers=bearer(tenant)).status_code == 429


def test_a_key_without_limits_costs_redis_nothing(
    plain_bundle: Bundle, gateway_redis: str, tenant: str
) -> None:
    keys = key_entry(tenant, "concurrent_jobs=5")
    with gateway_running(plain_bundle, gateway_redis, api_keys=keys) as gateway:
        reply = gateway.client.get("/classes", headers=bearer(tenant))
        assert reply.status_code == 200
        assert "ratelimit-limit" not in reply.headers
    with Redis.from_url(gateway_redis) as redis:
        assert not redis.exists(ALLOWANCES + tenant)


# -- the counting ----------------------------------------------------------------------------------------


def test_whoever_waits_as_long_as_told_gets_in(gateway_redis: str, tenant: str) -> None:
    allowance = Allowance(requests_per_minute=1200, burst=3)

    async def charge_in_time(allowances: Allowances) -> float:
        """The seconds that it was told to wait before it got in."""
        try:
            await allowances.charge_request(tenant, allowance)
        except RateLimited as refusal:
            wait = refusal.retry_after_s or 0.0
        else:
            return 0.0
        await asyncio.sleep(wait + 0.002)
        await allowances.charge_request(tenant, allowance)
        return wait

    async def scenario() -> None:
        allowances = Allowances(gateway_redis)
        began = time.monotonic()
        waits = [await charge_in_time(allowances) for _ in range(9)]
        assert waits[:3] == [0, 0, 0]
        assert all(0 <= wait <= 0.051 for wait in waits)
        # Three at once, then one each 50 ms.
        assert time.monotonic() - began >= 6 * 0.05 - 0.01
        await allowances.close()

    asyncio.run(scenario())


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    burst=st.integers(1, 6),
    daily=st.integers(1, 12),
    calls=st.lists(st.tuples(st.sampled_from(["request", "images", "back"]), st.integers(1, 4)), max_size=30),
)
def test_a_plain_count_of_tokens_agrees(
    gateway_redis: str, burst: int, daily: int, calls: list[tuple[str, int]]
) -> None:
    """One request a minute: so slow that nothing comes back during the test but by refunds."""
    name = uuid.uuid4().hex
    allowance = Allowance(1, burst, daily)

    async def scenario() -> None:
        allowances = Allowances(gateway_redis)
        requests, images = burst, daily
        for call, count in calls:
            if call == "back":
                await allowances.refund(name, allowance, requests=1, images=count)
                requests, images = min(burst, requests + 1), min(daily, images + count)
            elif call == "images":
                if count <= images:
                    await allowances.charge_images(name, allowance, count)
                    images -= count
                else:
                    with pytest.raises(QuotaExceeded, match=f"{images} are left"):
                        await allowances.charge_images(name, allowance, count)
            elif requests:
                balance = await allowances.charge_request(name, allowance)
                requests -= 1
                assert balance is not None
                assert balance.remaining == requests
            else:
                with pytest.raises(RateLimited):
                    await allowances.charge_request(name, allowance)
        await allowances.close()

    asyncio.run(scenario())


def test_the_count_of_yesterday_is_over_and_what_is_counted_ends_by_itself(
    gateway_redis: str, tenant: str
) -> None:
    allowance = Allowance(images_per_day=3)

    async def charge(images: int) -> None:
        allowances = Allowances(gateway_redis)
        try:
            await allowances.charge_images(tenant, allowance, images)
        finally:
            await allowances.close()

    asyncio.run(charge(3))
    with Redis.from_url(gateway_redis) as redis:
        name = ALLOWANCES + tenant
        assert 0 < redis.pttl(name) <= DAY_MS
        today = int(redis.hget(name, "day") or 0)
        assert today in (int(time.time() * 1000) // DAY_MS, int(time.time() * 1000 - 60_000) // DAY_MS)
        with pytest.raises(QuotaExceeded):
            asyncio.run(charge(1))
        redis.hset(name, "day", today - 1)
    asyncio.run(charge(3))


def test_without_redis_a_limited_key_is_asked_to_come_again() -> None:
    async def scenario() -> None:
        allowances = Allowances("redis://127.0.0.1:1/0")
        with pytest.raises(Unavailable):
            await allowances.charge_request("t", Allowance(requests_per_minute=1))
        await allowances.refund("t", Allowance(requests_per_minute=1), requests=1)
        assert await allowances.charge_request("t", Allowance()) is None
        await allowances.close()

    asyncio.run(scenario())
