from concurrent.futures import ThreadPoolExecutor
from logging import DEBUG
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from models.bundle import Bundle
from models.errors import ConfigError
from service.errors import Unavailable
from service.gateway import http_server, lineage
from service.gateway.app import create_app
from service.gateway.http_server import listen
from service.jobs.keys import revisions_of
from service.jobs.redis_server import RedisServer
from service.settings import Settings
from tests.gateway_answers import error_of, png
from tests.gateway_harness import FakeWorker, Gateway, gateway_running, until

# -- start ---------------------------------------------------------------------------------------------------


def test_without_a_redis_url_there_is_no_gateway(plain_bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="MASKBIT_REDIS_URL"):
        create_app(Settings(redis_url=None), [plain_bundle])


def test_a_port_in_use_is_one_clear_error(gateway: Gateway) -> None:
    with pytest.raises(
        Unavailable, match=f"cannot listen on 127.0.0.1:{gateway.port}: Address already in use"
    ):
        listen("127.0.0.1", gateway.port)


# -- health --------------------------------------------------------------------------------------------------


def test_without_a_worker_work_is_refused_at_once(plain_bundle: Bundle, own_redis: RedisServer) -> None:
    with gateway_running(plain_bundle, own_redis.url) as gateway:
        for response in (
            gateway.client.post("/generate", json={"class_id": 1}),
            gateway.client.post("/tokenize", content=png(), headers={"Content-Type": "image/png"}),
            gateway.client.post("/jobs", json={"kind": "generate", "class_id": 1}),
            gateway.client.get("/readyz"),
        ):
            error = error_of(response, 503)
            assert error["code"] == "unavailable"
            assert "no worker" in error["message"]
            assert int(response.headers["retry-after"]) >= 1
        assert gateway.client.get("/livez").json() == {"alive": True}
        assert gateway.client.get("/info").json()["runtime"] is None


def test_without_a_worker_a_gateway_is_ready_for_whoever_asks_for_redis_alone(
    plain_bundle: Bundle, own_redis: RedisServer
) -> None:
    with gateway_running(plain_bundle, own_redis.url) as gateway:
        alone = gateway.client.get("/readyz?workers=0")
        assert (alone.status_code, alone.json()) == (
            200,
            {"ready": True, "models": {"tiny": False}, "workers": []},
        )
        for path in ("/readyz", "/readyz?workers=1"):
            assert "no worker" in error_of(gateway.client.get(path), 503)["message"]
        assert "workers" in error_of(gateway.client.get("/readyz?workers=many"), 422)["message"]
        own_redis.stop()
        until(lambda: gateway.client.get("/readyz?workers=0").status_code == 503)
        assert "no worker" not in error_of(gateway.client.get("/readyz?workers=0"), 503)["message"]
        own_redis.start()
        until(lambda: gateway.client.get("/readyz?workers=0").status_code == 200)


def test_readiness_follows_redis_and_recovers_without_a_restart(
    plain_bundle: Bundle, own_redis: RedisServer
) -> None:
    with gateway_running(plain_bundle, own_redis.url) as gateway:
        worker = FakeWorker(gateway, own_redis.url)
        worker.start()
        try:
            until(lambda: gateway.client.get("/readyz").status_code == 200)
            ready = gateway.client.get("/readyz").json()
            assert ready["ready"] is True
            assert ready["workers"][0]["runtime"] == "noop"
            assert own_redis.pid is not None
            own_redis._process.kill()  # type: ignore[union-attr]
            own_redis._process.wait()  # type: ignore[union-attr]
            until(lambda: gateway.client.get("/readyz").status_code == 503)
            response = gateway.client.post("/generate", json={"class_id": 1})
            assert error_of(response, 503)["code"] == "unavailable"
            assert "retry-after" in response.headers
            assert gateway.client.get("/livez").status_code == 200
            assert gateway.client.get("/metrics").status_code == 200
            own_redis.start()
            until(lambda: gateway.client.get("/readyz").status_code == 200)
            assert gateway.client.post("/generate", json={"class_id": 1}).status_code == 200
        finally:
            worker.stop()


def test_a_gateway_starts_without_redis(plain_bundle: Bundle, tmp_path: Path) -> None:
    with gateway_running(plain_bundle, f"unix://{tmp_path}/none.sock") as gateway:
        assert gateway.client.get("/livez").status_code == 200
        assert gateway.client.get("/").status_code == 200
        assert error_of(gateway.client.get("/readyz"), 503)["code"] == "unavailable"


def test_a_redis_without_the_gateway_s_database_is_one_that_does_not_answer(
    plain_bundle: Bundle, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with gateway_running(plain_bundle, f"{own_redis.url}?db=99") as gateway:
        for response in (
            gateway.client.get("/readyz"),
            gateway.client.post("/generate", json={"class_id": 1}),
        ):
            assert error_of(response, 503)["code"] == "unavailable"
        until(lambda: "the inbox cannot be read" in caplog.text)
    assert caplog.text.count("DB index is out of range") == 1
    assert not any(record.exc_info for record in caplog.records)


def test_an_outage_is_told_when_it_begins_and_when_it_is_over(
    plain_bundle: Bundle, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "service")
    with gateway_running(plain_bundle, own_redis.url) as gateway:
        until(lambda: "no worker" in gateway.client.get("/readyz").text)
        own_redis.stop()
        until(lambda: caplog.text.count("a call is given up") >= 4)
        own_redis.start()
        until(lambda: "Redis answers again" in caplog.text)
    told = [record for record in caplog.records if "service.jobs" in record.name and record.levelno > DEBUG]
    assert [record.levelname for record in told] == ["WARNING", "INFO"]
    assert "trying again: ConnectionError" in told[0].message


def test_an_error_that_stays_is_told_once(
    plain_bundle: Bundle,
    own_redis: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(lineage, "_LOOK_S", 0.01)
    with Redis.from_url(own_redis.url) as redis, gateway_running(plain_bundle, own_redis.url):
        redis.set(revisions_of("tiny"), "no sorted set")
        until(lambda: failures(redis) >= 5)
        redis.delete(revisions_of("tiny"))
    told = [record for record in caplog.records if record.exc_info]
    assert [record.message for record in told] == ["looking up the revisions of tiny failed"]
    assert "WRONGTYPE" in caplog.text


def failures(redis: Redis) -> int:
    """How many commands met a value of a wrong type."""
    stats: Any = redis.info("errorstats")
    return int(stats.get("errorstat_WRONGTYPE", {}).get("count", 0))


def test_draining_refuses_new_work_and_finishes_what_runs(
    plain_bundle: Bundle, own_redis: RedisServer
) -> None:
    with gateway_running(plain_bundle, own_redis.url) as gateway, ThreadPoolExecutor(1) as pool:
        worker = FakeWorker(gateway, own_redis.url)
        worker.start()
        try:
            until(lambda: gateway.client.get("/readyz").status_code == 200)
            worker.gate.clear()
            running = pool.submit(httpx.post, f"{gateway.client.base_url}/generate", json={"class_id": 1})
            until(lambda: worker.claimed)
            gateway.server.handle_exit(15, None)
            for path in ("/readyz", "/readyz?workers=0"):
                assert error_of(gateway.client.get(path), 503)["code"] == "unavailable"
            assert (
                "shutting down"
                in error_of(gateway.client.post("/generate", json={"class_id": 1}), 503)["message"]
            )
            assert gateway.client.get("/livez").status_code == 200
            worker.gate.set()
            assert running.result(10).status_code == 200
            until(lambda: not gateway.server.server_state.connections)
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{gateway.client.base_url}/livez")
        finally:
            worker.stop()


def test_a_repeated_signal_is_one_signal_and_a_second_one_ends_in_order(
    plain_bundle: Bundle,
    own_redis: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with gateway_running(plain_bundle, own_redis.url) as gateway, ThreadPoolExecutor(1) as pool:
        worker = FakeWorker(gateway, own_redis.url)
        worker.start()
        try:
            until(lambda: gateway.client.get("/readyz").status_code == 200)
            worker.gate.clear()
            url = f"{gateway.client.base_url}/generate"
            running = pool.submit(httpx.post, url, json={"class_id": 1}, timeout=20)
            until(lambda: worker.claimed)
            for _ in range(3):
                gateway.server.handle_exit(15, None)
            assert not gateway.server.force_exit
            assert gateway.client.get("/livez").status_code == 200
            monkeypatch.setattr(http_server, "_SAME_SIGNAL_S", 0.0)
            gateway.server.handle_exit(15, None)
            assert gateway.server.force_exit
            assert error_of(running.result(15), 503)["code"] == "unavailable"
        finally:
            worker.stop()
    assert "Traceback" not in caplog.text
    assert not any(record.exc_info for record in caplog.records)


def test_what_still_runs_when_the_drain_time_is_over_gets_a_503(
    plain_bundle: Bundle, own_redis: RedisServer
) -> None:
    with gateway_running(plain_bundle, own_redis.url, drain_s=0.1) as gateway, ThreadPoolExecutor(1) as pool:
        worker = FakeWorker(gateway, own_redis.url)
        worker.start()
        try:
            until(lambda: gateway.client.get("/readyz").status_code == 200)
            worker.gate.clear()
            running = pool.submit(
                httpx.post, f"{gateway.client.base_url}/generate", json={"class_id": 1}, timeout=20
            )
            until(lambda: worker.claimed)
            gateway.server.handle_exit(15, None)
            assert error_of(running.result(15), 503)["code"] == "unavailable"
            until(lambda: worker.claimed[0] in worker.stopped)
        finally:
            worker.stop()
