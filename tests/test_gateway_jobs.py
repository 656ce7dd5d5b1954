import base64
import json
import socket
import threading

import httpx
import pytest

from models.bundle import Bundle
from service.gateway.answers import JobAnswer
from service.jobs.redis_server import RedisServer
from tests.gateway_answers import (
    Event,
    colour,
    error_of,
    events_of,
    expected_tokens,
    finished,
    metric,
    open_jobs,
    png,
)
from tests.gateway_harness import FakeWorker, Gateway, gateway_running, until

# -- jobs ----------------------------------------------------------------------------------------------------


def test_a_job_is_accepted_looked_at_and_done(gateway: Gateway, worker: FakeWorker) -> None:
    worker.gate.clear()
    accepted = gateway.client.post("/jobs", json={"kind": "generate", "class_id": 3, "seed": 9})
    assert accepted.status_code == 202
    job_id = accepted.json()["id"]
    assert accepted.headers["location"] == f"/jobs/{job_id}"
    until(lambda: gateway.client.get(f"/jobs/{job_id}").json()["state"] == "running")
    queued = gateway.client.post("/jobs", json={"kind": "generate", "class_id": 3}).json()["id"]
    response = gateway.client.get(f"/jobs/{queued}")
    assert (response.status_code, response.json()["state"], response.json()["position"]) == (202, "queued", 0)
    worker.gate.set()
    done = finished(gateway, job_id)
    assert done.status_code == 200
    JobAnswer.model_validate(done.json())
    assert done.json()["state"] == "done"
    sync = gateway.client.post("/generate", json={"class_id": 3, "seed": 9}).json()
    assert done.json()["result"]["images"] == sync["images"]
    assert finished(gateway, queued).status_code == 200


def test_jobs_tokenize_and_detokenize_too(gateway: Gateway, worker: FakeWorker) -> None:
    image = base64.b64encode(png(9)).decode()
    job = gateway.client.post("/jobs", json={"kind": "tokenize", "image": image, "fit": "stretch"}).json()
    assert finished(gateway, job["id"]).json()["result"]["indices"] == expected_tokens(9)
    packed = finished(gateway, job["id"], "?encoding=packed").json()["result"]
    assert "packed" in packed
    assert "indices" not in packed
    job = gateway.client.post("/jobs", json={"kind": "detokenize", "indices": expected_tokens(0)}).json()
    image = finished(gateway, job["id"]).json()["result"]["images"][0]["b64"]
    assert colour(base64.b64decode(image)) == sum(range(64)) % 256


def test_cancelling_is_idempotent_and_reaches_the_worker(gateway: Gateway, worker: FakeWorker) -> None:
    worker.gate.clear()
    job_id = gateway.client.post("/jobs", json={"kind": "generate", "class_id": 0}).json()["id"]
    until(lambda: job_id in worker.claimed)
    for _ in range(2):
        response = gateway.client.delete(f"/jobs/{job_id}")
        assert (response.status_code, response.json()["state"]) == (200, "cancelled")
    until(lambda: job_id in worker.stopped)
    response = gateway.client.get(f"/jobs/{job_id}")
    assert response.status_code == 409
    assert response.json()["error"]["code"] == "cancelled"
    worker.gate.set()
    done = gateway.client.post("/jobs", json={"kind": "generate", "class_id": 0}).json()["id"]
    finished(gateway, done)
    assert gateway.client.delete(f"/jobs/{done}").json()["state"] == "done"


def test_an_unknown_job_is_404_everywhere(gateway: Gateway, worker: FakeWorker) -> None:
    for job_id in ("0" * 32, "nope", "%2e%2e", "x" * 500, "\u00e4"):
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
            error = error_of(gateway.client.request(method, f"/jobs/{job_id}{path}"), 404)
            assert error["code"] == "not_found"


def test_events_of_a_job_can_be_resumed(gateway: Gateway, worker: FakeWorker) -> None:
    worker.progress = [{"image": 0, "step": step, "steps": 8} for step in range(1, 5)]
    job_id = gateway.client.post("/jobs", json={"kind": "generate", "class_id": 0}).json()["id"]
    finished(gateway, job_id)

    def steps(last_event_id: str | None) -> tuple[list[int], list[Event]]:
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        with gateway.client.stream("GET", f"/jobs/{job_id}/events", headers=headers) as response:
            events = events_of(response.read().decode())
        return [data["step"] for _, name, data in events if name == "progress"], events

    worker.gate.clear()
    running = gateway.client.post("/jobs", json={"kind": "generate", "class_id": 0}).json()["id"]
    seen: list[str] = []
    with gateway.client.stream("GET", f"/jobs/{running}/events") as response:
        text = ""
        for chunk in response.iter_text():
            text += chunk
            seen = [
                event_id for event_id, name, _ in events_of(text[: text.rindex("\n\n")]) if name == "progress"
            ]
            if len(seen) == 4:
                break
    job_id = running
    threading.Timer(0.3, worker.gate.set).start()
    resumed, events = steps(seen[1])
    assert resumed == [3, 4]
    assert [name for _, name, _ in events if name != "progress"] == ["queued", "image", "done"]
    for wrong in ("nonsense", "1-2-3", "-", "9" * 40):
        assert steps(wrong)[1][-1][1] == "done"
    first = steps("0")[1][0][2]
    assert first == {"id": job_id, "state": "done", "position": None, "eta_ms": None}


def test_leaving_the_events_does_not_cancel_the_job(gateway: Gateway, worker: FakeWorker) -> None:
    worker.gate.clear()
    job_id = gateway.client.post("/jobs", json={"kind": "generate", "class_id": 0}).json()["id"]
    with gateway.client.stream("GET", f"/jobs/{job_id}/events") as response:
        next(response.iter_text())
    worker.gate.set()
    assert finished(gateway, job_id).status_code == 200


def test_a_stream_tells_the_progress_of_a_job_that_is_done_before_anybody_looks(
    gateway: Gateway, worker: FakeWorker
) -> None:
    worker.progress = [{"image": 0, "step": step, "steps": 40} for step in range(40)]
    job_id = gateway.client.post("/jobs", json={"kind": "generate", "class_id": 1}).json()["id"]
    until(lambda: gateway.client.get(f"/jobs/{job_id}").status_code == 200)
    path = f"/jobs/{job_id}/events"
    told = events_of(gateway.client.get(path).text)
    assert [data for _, name, data in told if name == "progress"] == worker.progress
    assert [name for _, name, _ in told][-2:] == ["image", "done"]
    seventh = [one for one, name, _ in told if name == "progress"][6]
    assert seventh is not None
    resumed = events_of(gateway.client.get(path, headers={"Last-Event-ID": seventh}).text)
    assert [data for _, name, data in resumed if name == "progress"] == worker.progress[7:]


# -- idempotency ---------------------------------------------------------------------------------------------


def test_a_repeated_idempotency_key_gives_the_first_answer(gateway: Gateway, worker: FakeWorker) -> None:
    headers = {"Idempotency-Key": "order 1"}
    first = gateway.client.post("/generate", json={"class_id": 1, "n": 2}, headers=headers).json()
    again = gateway.client.post(
        "/generate",
        content=b'{"n": 2,  "class_id": 1}',
        headers={**headers, "Content-Type": "application/json"},
    )
    assert again.json() == first
    assert worker.claimed.count(first["id"]) == 1
    job = gateway.client.post(
        "/jobs", json={"kind": "generate", "class_id": 1}, headers={"Idempotency-Key": "order 2"}
    )
    same = gateway.client.post(
        "/jobs", json={"kind": "generate", "class_id": 1}, headers={"Idempotency-Key": "order 2"}
    )
    assert same.headers["location"] == job.headers["location"]
    upload = {"content": png(9), "headers": {"Content-Type": "image/png", "Idempotency-Key": "order 3"}}
    for _ in range(2):
        assert gateway.client.post("/tokenize", **upload).json()["indices"] == expected_tokens(9)  # type: ignore[arg-type]


def test_an_idempotency_key_with_another_request_is_a_conflict(gateway: Gateway, worker: FakeWorker) -> None:
    headers = {"Idempotency-Key": "order 4"}
    assert gateway.client.post("/generate", json={"class_id": 1}, headers=headers).status_code == 200
    for path, body in (
        ("/generate", {"class_id": 2}),
        ("/generate", {"class_id": 1, "seed": 3}),
        ("/jobs", {"class_id": 1, "kind": "generate"}),
        ("/detokenize", {"indices": expected_tokens(0)}),
    ):
        error = error_of(gateway.client.post(path, json=body, headers=headers), 422)
        assert error["code"] == "idempotency_conflict"
    for key in ("", "x" * 256, "a\tb"):
        error = error_of(
            gateway.client.post("/generate", json={"class_id": 1}, headers={"Idempotency-Key": key}), 422
        )
        assert "Idempotency-Key" in error["message"]


# -- clients that leave --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_job(
    gateway: Gateway, gateway_redis: str, worker: FakeWorker, stream: bool
) -> None:
    worker.gate.clear()
    before = metric(gateway, 'maskbit_http_requests_total{code="499",method="POST",route="/generate"}')
    body = json.dumps({"class_id": 1, "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        head = f"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        client.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        until(lambda: worker.claimed)
    until(lambda: worker.claimed[-1] in worker.stopped)
    assert open_jobs(gateway, gateway_redis) == 0
    assert gateway.client.get(f"/jobs/{worker.claimed[-1]}").status_code == 409
    line = 'maskbit_http_requests_total{code="499",method="POST",route="/generate"}'
    until(lambda: metric(gateway, line) == before + 1)


def test_with_an_idempotency_key_the_job_waits_for_the_clients_return(
    gateway: Gateway, worker: FakeWorker
) -> None:
    worker.gate.clear()
    body, headers = {"class_id": 1, "seed": 3}, {"Idempotency-Key": "order 5"}
    with pytest.raises(httpx.ReadTimeout):
        gateway.client.post("/generate", json=body, headers=headers, timeout=0.3)
    worker.gate.set()
    answer = gateway.client.post("/generate", json=body, headers=headers).json()
    assert answer["id"] == worker.claimed[-1]
    assert len(worker.claimed) == 1


# -- how jobs end badly --------------------------------------------------------------------------------------


def test_a_deadline_that_passes_is_504(gateway: Gateway, worker: FakeWorker) -> None:
    worker.gate.clear()
    response = gateway.client.post("/generate", json={"class_id": 1, "deadline_ms": 50})
    assert error_of(response, 504)["code"] == "deadline_passed"
    job_id = gateway.client.post("/jobs", json={"kind": "generate", "class_id": 1, "deadline_ms": 50}).json()[
        "id"
    ]
    response = finished(gateway, job_id)
    assert (response.status_code, response.json()["state"]) == (504, "expired")
    assert response.json()["error"]["code"] == "deadline_passed"


@pytest.mark.parametrize(
    ("code", "status"), [("job_failed", 500), ("poisoned", 500), ("invalid_request", 422), ("odd", 500)]
)
def test_a_workers_error_becomes_the_answer(
    gateway: Gateway, worker: FakeWorker, code: str, status: int
) -> None:
    worker.answer = lambda consumer, job: consumer.fail(job, code, "so it was")
    error = error_of(gateway.client.post("/generate", json={"class_id": 1}), status)
    assert (error["code"], error["message"]) == (code if code != "odd" else "job_failed", "so it was")
    job_id = gateway.client.post("/jobs", json={"kind": "generate", "class_id": 1}).json()["id"]
    response = finished(gateway, job_id)
    assert (response.status_code, response.json()["state"]) == (status, "failed")


def test_a_malformed_result_is_a_failed_job_and_not_a_stack_trace(
    gateway: Gateway, worker: FakeWorker
) -> None:
    worker.answer = lambda consumer, job: consumer.finish(job, b"\xc1 nonsense")
    assert error_of(gateway.client.post("/generate", json={"class_id": 1}), 500)["code"] == "job_failed"


def test_a_full_queue_says_when_to_come_back(plain_bundle: Bundle, own_redis: RedisServer) -> None:
    with gateway_running(plain_bundle, own_redis.url, open_jobs=2) as gateway:
        worker = FakeWorker(gateway, own_redis.url)
        worker.start()
        worker.gate.clear()
        try:
            until(lambda: gateway.client.get("/readyz").status_code == 200)
            body = {"kind": "generate", "class_id": 1}
            ids = [gateway.client.post("/jobs", json=body).json()["id"] for _ in range(2)]
            response = gateway.client.post("/generate", json={"class_id": 1})
            assert error_of(response, 503)["code"] == "queue_full"
            assert int(response.headers["retry-after"]) >= 1
            assert metric(gateway, 'maskbit_shed_total{reason="queue_full"}') == 1
            worker.gate.set()
            assert [finished(gateway, one).status_code for one in ids] == [200, 200]
        finally:
            worker.stop()


def test_an_expired_result_is_410(plain_bundle: Bundle, own_redis: RedisServer) -> None:
    with gateway_running(plain_bundle, own_redis.url, result_ttl_s=0.2) as gateway:
        worker = FakeWorker(gateway, own_redis.url)
        worker.start()
        try:
            until(lambda: gateway.client.get("/readyz").status_code == 200)
            job_id = gateway.client.post("/jobs", json={"kind": "generate", "class_id": 1}).json()["id"]
            until(lambda: gateway.client.get(f"/jobs/{job_id}").status_code == 410)
            error = error_of(gateway.client.get(f"/jobs/{job_id}"), 410)
            assert error["code"] == "result_expired"
            error_of(gateway.client.delete(f"/jobs/{job_id}"), 410)
        finally:
            worker.stop()


def test_after_a_503_of_a_worker_the_same_key_is_another_job(gateway: Gateway, worker: FakeWorker) -> None:
    worker.answer = lambda consumer, job: consumer.fail(job, "unavailable", "the workers are gone; ask again")
    body, headers = {"class_id": 1, "seed": 3, "steps": 2}, {"Idempotency-Key": "order 6"}
    first = gateway.client.post("/generate", json=body, headers=headers)
    place = gateway.client.post("/jobs", json={"kind": "generate", **body}).headers["location"]
    until(lambda: gateway.client.get(place).status_code != 202)
    looked = gateway.client.get(place)
    worker.answer = None
    assert (first.status_code, first.headers["retry-after"]) == (503, "1")
    assert (looked.status_code, looked.json()["state"]) == (503, "failed")
    assert gateway.client.post("/generate", json=body, headers=headers).status_code == 200
