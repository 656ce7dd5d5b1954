"""Requests over HTTP that the measured speed of the workers lets in or turns away."""

from collections.abc import Iterator

import pytest

from service.jobs.consumer import Consumer
from tests.gateway_harness import Gateway, until

pytest_plugins = ["tests.gateway_fixtures"]


@pytest.fixture
def measured(gateway: Gateway, gateway_redis: str) -> Iterator[Consumer]:
    """A worker with one slot that draws 10 network rows in a second, and takes nothing."""
    worker = Consumer(gateway_redis, gateway.keys, "measured", gateway.settings.queue_limits())
    speed = {"rows_per_s": 10.0, "step_s": 0.1, "images_per_s": 1.0, "codec_s": 0.1}
    worker.announce({"runtime": "noop", "slots": 1, "codec_images": 16, **speed})
    until(lambda: gateway.client.get("/readyz").status_code == 200)
    yield worker
    worker.retire()
    worker.close()


def test_a_request_that_cannot_be_done_in_time_is_refused_at_once(
    gateway: Gateway, measured: Consumer
) -> None:
    body = {"class_id": 1, "steps": 8, "guidance_scale": 0, "deadline_ms": 700}
    answer = gateway.client.post("/jobs", json={"kind": "generate", **body})
    assert answer.status_code == 504
    error = answer.json()["error"]
    assert error["code"] == "deadline_unmeetable"
    assert "800 ms at least" in error["message"]
    assert "Retry-After" not in answer.headers
    assert 'maskbit_shed_total{reason="deadline_unmeetable"} 1.0' in gateway.client.get("/metrics").text


def test_a_backlog_turns_away_what_it_makes_late_and_says_when_to_come_again(
    gateway: Gateway, measured: Consumer
) -> None:
    body = {"kind": "generate", "class_id": 1, "steps": 8, "guidance_scale": 0}
    # Two pictures without guidance fit at once, so that six wait: 48 rows.
    ids = [gateway.client.post("/jobs", json=body).json()["id"] for _ in range(8)]
    refused = gateway.client.post("/jobs", json={**body, "deadline_ms": 3000})
    assert (refused.status_code, refused.headers["Retry-After"]) == (504, "3")
    accepted = gateway.client.post("/jobs", json={**body, "deadline_ms": 10_000})
    assert accepted.status_code == 202
    # 64 rows before it, of which the workers begin 16 at once, then its own 8 at 10 in a second.
    assert (accepted.json()["position"], accepted.json()["eta_ms"]) == (8, 5600)
    for job_id in (*ids, accepted.json()["id"]):
        assert gateway.client.delete(f"/jobs/{job_id}").status_code == 200
