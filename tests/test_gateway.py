import base64
import io
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.gateway.answers import InfoAnswer, PicturesAnswer, TokensAnswer, TokensListAnswer
from service.jobs.consumer import Consumer
from service.jobs.job import ClaimedJob
from service.jobs.payloads import GenerateJob
from tests.gateway_answers import colour, error_of, events_of, expected_tokens, metric, open_jobs, png
from tests.gateway_harness import FakeWorker, Gateway, finish, until

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


# -- generate ------------------------------------------------------------------------------------------------


def test_generate_answers_with_pictures_their_seeds_and_classes(gateway: Gateway, worker: FakeWorker) -> None:
    response = gateway.client.post("/generate", json={"class_name": "cherry", "n": 2, "seed": 40, "steps": 3})
    assert response.status_code == 200
    answer = response.json()
    PicturesAnswer.model_validate(answer)
    assert [(one["class_id"], one["class_name"], one["seed"]) for one in answer["images"]] == [
        (2, "cherry", 40),
        (2, "cherry", 41),
    ]
    assert [colour(base64.b64decode(one["b64"])) for one in answer["images"]] == [40, 41]
    assert answer["model"] == "tiny"
    assert answer["usage"]["steps"] == 3
    assert answer["usage"]["compute_ms"] == 1.5
    assert answer["id"] == worker.claimed[-1]


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp", "npy", "tokens"])
def test_every_format_arrives_as_the_worker_made_it(
    gateway: Gateway, worker: FakeWorker, file_format: str
) -> None:
    body = {"class_id": 0, "seed": 20, "format": file_format}
    image = gateway.client.post("/generate", json=body).json()["images"][0]
    assert image["format"] == file_format
    if file_format == "tokens":
        assert image["indices"] == [[20] * 8] * 8
        assert image["tokens"] == [["001010"] * 8] * 8
        assert "b64" not in image
        return
    data = base64.b64decode(image["b64"])
    got = int(np.load(io.BytesIO(data))[0, 0, 0]) if file_format == "npy" else colour(data)
    assert abs(got - 20) <= 1


def test_with_accept_image_a_single_picture_comes_as_itself(gateway: Gateway, worker: FakeWorker) -> None:
    body: dict[str, Any] = {"class_id": 4, "seed": 2**63 - 1}
    response = gateway.client.post("/generate", json=body, headers={"Accept": "image/*"})
    assert response.headers["content-type"] == "image/png"
    assert (response.headers["x-seed"], response.headers["x-class-id"]) == (str(2**63 - 1), "4")
    assert response.headers["x-class-name"] == "strawberry"
    assert colour(response.content) == 255
    body["format"] = "webp"
    response = gateway.client.post("/generate", json=body, headers={"Accept": "text/html, image/webp;q=0.8"})
    assert response.headers["content-type"] == "image/webp"
    for several in ({"n": 2, "seed": 1}, {"format": "tokens"}):
        response = gateway.client.post("/generate", json=body | several, headers={"Accept": "image/*"})
        assert response.headers["content-type"] == "application/json"


def test_a_drawn_seed_is_returned_and_draws_the_same_again(gateway: Gateway, worker: FakeWorker) -> None:
    first = gateway.client.post("/generate", json={"class_id": 1}).json()["images"][0]
    again = gateway.client.post("/generate", json={"class_id": 1, "seed": first["seed"]}).json()["images"][0]
    assert again == first


def test_a_stream_tells_queued_progress_images_and_done(gateway: Gateway, worker: FakeWorker) -> None:
    worker.progress = [{"image": k, "step": 1, "steps": 8, "preview": "AAAA"} for k in (0, 1)]
    worker.gate.clear()
    body = {"class_id": 1, "n": 2, "seed": 5, "stream": True, "preview_every": 1}
    with gateway.client.stream("POST", "/generate", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        text = ""
        for chunk in response.iter_text():
            text += chunk
            if text.count("event: progress") == 2:
                worker.gate.set()
    events = events_of(text)
    assert [name for _, name, _ in events] == ["queued", "progress", "progress", "image", "image", "done"]
    assert events[0][2]["id"] == worker.claimed[-1]
    # The worker may have it by now.
    assert (events[0][2]["state"], events[0][2]["position"]) in (("queued", 0), ("running", None))
    assert [data for _, name, data in events if name == "progress"] == worker.progress
    images = [data for _, name, data in events if name == "image"]
    assert [(one["index"], one["seed"], one["class_name"]) for one in images] == [
        (0, 5, "banana"),
        (1, 6, "banana"),
    ]
    assert events[-1][2]["usage"]["steps"] == 8


def test_a_stream_ends_with_the_error_of_its_job(gateway: Gateway, worker: FakeWorker) -> None:
    worker.answer = lambda consumer, job: consumer.fail(job, "job_failed", "the network broke")
    response = gateway.client.post("/generate", json={"class_id": 1, "stream": True})
    assert events_of(response.text)[-1][1:] == (
        "error",
        {"code": "job_failed", "message": "the network broke"},
    )


# -- tokens --------------------------------------------------------------------------------------------------


def test_a_picture_is_tokenized_from_each_kind_of_body(gateway: Gateway, worker: FakeWorker) -> None:
    client, data = gateway.client, png(9)
    bodies: list[dict[str, Any]] = [
        {"content": data, "headers": {"Content-Type": "image/png"}},
        {"content": data, "headers": {"Content-Type": "image/unknown"}},
        {"content": data, "headers": {"Content-Type": "application/octet-stream"}},
        {"content": iter([data[:50], data[50:]]), "headers": {"Content-Type": "image/png"}},
        {"files": {"file": ("ä.png", data)}},
        {"json": {"image": base64.b64encode(data).decode()}},
    ]
    for body in bodies:
        response = client.post("/tokenize", **body)
        assert response.status_code == 200, response.text
        answer = response.json()
        TokensAnswer.model_validate(answer)
        assert answer["indices"] == expected_tokens(9)
        assert answer["tokens"][0][0] == "100100"
        assert (answer["grid"], answer["bits_per_token"], answer["bit_order"]) == ([8, 8], 6, "lsb-first")


def test_several_files_give_a_list_in_their_order(gateway: Gateway, worker: FakeWorker) -> None:
    files = [("file", png(3)), ("file", png(200)), ("file", png(17))]
    answer = gateway.client.post("/tokenize", files=files).json()
    TokensListAnswer.model_validate(answer)
    assert [one["indices"] for one in answer["results"]] == [expected_tokens(value) for value in (3, 200, 17)]


def test_each_encoding_holds_the_same_tokens(gateway: Gateway, worker: FakeWorker) -> None:
    def post(encoding: str) -> httpx.Response:
        headers = {"Content-Type": "image/png"}
        return gateway.client.post(
            "/tokenize", params={"encoding": encoding}, content=png(9), headers=headers
        )

    wanted = np.array(expected_tokens(9))
    indices = post("indices").json()
    assert "tokens" not in indices
    assert indices["indices"] == wanted.tolist()
    packed = base64.b64decode(post("packed").json()["packed"])
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little").reshape(8, 8, 6)
    np.testing.assert_array_equal((bits * 2 ** np.arange(6)).sum(-1), wanted)
    npy = post("npy")
    assert npy.headers["content-type"] == "application/x-npy"
    array = np.load(io.BytesIO(npy.content))
    assert array.dtype == np.int32
    np.testing.assert_array_equal(array, wanted)


def test_the_fit_reaches_the_decoder(gateway: Gateway, worker: FakeWorker) -> None:
    def mean(fit: str) -> int:
        headers = {"Content-Type": "image/png"}
        answer = gateway.client.post(f"/tokenize?fit={fit}", content=png(0, (40, 20)), headers=headers)
        return int(answer.json()["indices"][0][0])

    # Black in a white frame, half and half; the fake worker's first token is the mean colour modulo 64.
    assert (mean("crop"), mean("stretch"), mean("pad")) == (0, 0, 127 % 64)


def test_tokens_become_a_picture_from_each_encoding(gateway: Gateway, worker: FakeWorker) -> None:
    grid = np.zeros((8, 8), np.int64)
    grid[0, :2] = 63, 37
    file = io.BytesIO()
    np.save(file, grid)
    tokens = [[format(token, "06b")[::-1] for token in row] for row in grid.tolist()]
    bodies: list[dict[str, Any]] = [
        {"json": {"indices": grid.tolist()}},
        {"json": {"tokens": tokens}},
        {
            "json": {
                "packed": base64.b64encode(
                    np.packbits([1] * 6 + [1, 0, 1, 0, 0, 1], bitorder="little").tobytes() + bytes(46)
                ).decode()
            }
        },
        {"content": file.getvalue(), "headers": {"Content-Type": "application/x-npy"}},
    ]
    for body in bodies:
        response = gateway.client.post("/detokenize", **body)
        assert response.status_code == 200, response.text
        answer = response.json()
        PicturesAnswer.model_validate(answer)
        assert set(answer["images"][0]) == {"format", "b64"}
        assert colour(base64.b64decode(answer["images"][0]["b64"])) == 100
    raw = gateway.client.post(
        "/detokenize?format=webp",
        **bodies[3],
    )
    assert raw.json()["images"][0]["format"] == "webp"
    picture = gateway.client.post("/detokenize", json=bodies[0]["json"], headers={"Accept": "image/*"})
    assert picture.headers["content-type"] == "image/png"
    assert colour(picture.content) == 100


# -- around it -----------------------------------------------------------------------------------------------


def test_info_and_classes_describe_the_bundle(gateway: Gateway, worker: FakeWorker) -> None:
    info = until(lambda: (got := gateway.client.get("/info").json())["runtime"] and got)
    InfoAnswer.model_validate(info)
    assert (info["model"], info["image_size"], info["grid"], info["bits"]) == ("tiny", 16, [8, 8], 6)
    assert info["bundle"] == gateway.bundle.ref
    assert info["runtime"] == "noop"
    assert info["limits"]["steps"] == [1, 128]
    assert info["limits"]["max_images"] == 16
    assert info["defaults"]["steps"] == 8
    classes = gateway.client.get("/classes").json()["classes"]
    assert classes[4] == {"id": 4, "name": "strawberry"}
    assert gateway.client.get("/classes", params={"search": "AN"}).json() == {
        "classes": [{"id": 1, "name": "banana"}]
    }
    assert gateway.client.get("/classes", params={"serch": "a"}).status_code == 422


def test_the_framework_s_own_errors_have_the_same_shape(gateway: Gateway, worker: FakeWorker) -> None:
    client = gateway.client
    assert error_of(client.get("/nowhere"), 404)["code"] == "not_found"
    assert error_of(client.get("/static/none.js"), 404)["code"] == "not_found"
    assert error_of(client.get("/static/../gateway.py"), 404)
    response = client.get("/generate")
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"
    assert "encoding is 'hex'" in error_of(client.post("/tokenize?encoding=hex"), 422)["message"]
    assert "colour" in error_of(client.post("/tokenize?colour=1"), 422)["message"]
    for content_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        headers = {"Content-Type": content_type} if content_type else {}
        for path in ("/generate", "/tokenize", "/detokenize", "/jobs"):
            response = client.post(path, content=b"{}", headers=headers)
            assert error_of(response, 415)["code"] == "unsupported_media_type"


def test_a_query_where_the_body_says_all_is_refused_and_named(gateway: Gateway, worker: FakeWorker) -> None:
    for path in ("/generate", "/edit", "/jobs"):
        message = error_of(gateway.client.post(f"{path}?model=x", json={"class_id": 1}), 422)["message"]
        assert f"'model' is not known; {path} takes none" in message
    assert worker.claimed == []
    azure = gateway.client.post("/v1/images/generations?api-version=2024-02-01", json={"prompt": "1"})
    assert azure.status_code == 200


def test_an_internal_error_shows_nothing_but_its_request_id(
    gateway: Gateway, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("service.gateway.routes.about.ClassesAnswer", broken)
    response = gateway.client.get("/classes", headers={"X-Request-ID": "abc-1"})
    error = error_of(response, 500)
    assert (error["code"], error["request_id"]) == ("internal", "abc-1")
    assert "secret" not in response.text
    assert any("abc-1" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("wanted", ["abc.DEF_1-2", "x" * 64])
def test_a_sane_request_id_is_the_caller_s(gateway: Gateway, wanted: str) -> None:
    assert gateway.client.get("/livez", headers={"X-Request-ID": wanted}).headers["x-request-id"] == wanted


@pytest.mark.parametrize("wanted", ["", "a b", "x" * 65, "a/b", "<script>"])
def test_another_request_id_is_replaced(gateway: Gateway, wanted: str) -> None:
    got = gateway.client.get("/livez", headers={"X-Request-ID": wanted}).headers["x-request-id"]
    assert got != wanted
    assert REQUEST_ID.fullmatch(got)


def test_every_answer_carries_the_security_headers(gateway: Gateway, worker: FakeWorker) -> None:
    for path in ("/", "/docs", "/nowhere", "/static/base.css", "/openapi.json", "/metrics"):
        headers = gateway.client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert REQUEST_ID.fullmatch(headers["x-request-id"])
        assert "server" not in headers


def test_the_docs_describe_every_route_and_ask_nobody_else(gateway: Gateway) -> None:
    document = gateway.client.get("/openapi.json").json()
    page = gateway.client.get("/docs").text
    for path in (
        "/generate",
        "/tokenize",
        "/detokenize",
        "/jobs",
        "/jobs/{job_id}",
        "/classes",
        "/info",
        "/readyz",
    ):
        assert path in document["paths"]
        assert path in page
    assert not re.search(r"https?://|<script|style=", page)
    schema = document["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["additionalProperties"] is False
    assert "noise_temperature" in schema["properties"]
    assert "$defs" not in json.dumps(document)


def test_metrics_count_requests_jobs_and_queues_by_template(gateway: Gateway, worker: FakeWorker) -> None:
    line = 'maskbit_jobs_total{kind="generate",model="tiny",outcome="done"}'
    before = metric(gateway, line)
    job_id = gateway.client.post("/generate", json={"class_id": 1}).json()["id"]
    gateway.client.get(f"/jobs/{job_id}")
    gateway.client.get(f"/{job_id}")
    assert metric(gateway, line) == before + 1
    text = gateway.client.get("/metrics").text
    assert job_id not in text
    for name in (
        "maskbit_http_requests_total",
        "maskbit_http_request_seconds",
        "maskbit_queue_wait_seconds",
        "maskbit_request_seconds",
        "maskbit_queue_depth",
        "maskbit_oldest_job_age_seconds",
        "maskbit_jobs_total",
        "maskbit_shed_total",
    ):
        assert f"# HELP {name} " in text
    assert 'route="/jobs/{job_id}"' in text
    assert 'maskbit_queue_depth{kind="interactive",model="tiny"}' in text


def test_the_gateway_imports_no_torch() -> None:
    code = "import sys, service.gateway.app; sys.exit(bool({'torch', 'safetensors'} & set(sys.modules)))"
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60, check=False).returncode == 0


def test_many_clients_each_get_their_own_answer(
    gateway: Gateway, gateway_redis: str, worker: FakeWorker
) -> None:
    def one(seed: int) -> tuple[int, int]:
        answer = gateway.client.post("/generate", json={"class_id": seed % 5, "seed": seed}).json()["images"][
            0
        ]
        return answer["seed"], colour(base64.b64decode(answer["b64"]))

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, range(200))) == [(seed, seed) for seed in range(200)]
    assert open_jobs(gateway, gateway_redis) == 0


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
FIELDS = ["class_id", "class_name", "n", "seed", "steps", "guidance_scale", "temperature", "format", "kind"]
FIELDS += [
    "indices",
    "tokens",
    "packed",
    "image",
    "fit",
    "stream",
    "deadline_ms",
    "priority",
    "preview_every",
]
BODIES = (
    st.binary(max_size=100)
    | JSON_VALUES.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(
        st.sampled_from(FIELDS),
        JSON_VALUES | st.sampled_from(["generate", "tokenize", "detokenize", 1]),
        max_size=4,
    ).map(lambda value: json.dumps(value).encode())
)
TYPES = [
    "application/json",
    "image/png",
    "application/x-npy",
    "multipart/form-data; boundary=b",
    "multipart/form-data",
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["/generate", "/tokenize", "/detokenize", "/jobs"]),
    content_type=st.sampled_from(TYPES),
    body=BODIES,
)
def test_no_body_makes_the_gateway_fail(
    gateway: Gateway, worker: FakeWorker, path: str, content_type: str, body: bytes
) -> None:
    response = gateway.client.post(path, content=body, headers={"Content-Type": content_type})
    assert response.status_code < 500 or response.status_code == 503, (body, response.text)
    if response.status_code >= 400:
        error_of(response, response.status_code)


@pytest.mark.shared
def test_hostile_pictures_are_answered_and_the_gateway_lives(
    gateway: Gateway, worker: FakeWorker, shared_data: Path
) -> None:
    folder = shared_data / "data" / "hostile"
    for entry in json.loads((folder / "manifest.json").read_text())["files"]:
        data = (folder / entry["file"]).read_bytes()
        response = gateway.client.post("/tokenize", content=data, headers={"Content-Type": "image/*"})
        status = response.status_code
        allowed = {"decode": status == 200, "reject": 400 <= status < 500, "either": status < 500}
        assert allowed[entry["expect"]], (entry["file"], status, response.text[:200])
    assert gateway.client.get("/readyz").status_code == 200


def answer_by_payload(consumer: Consumer, job: ClaimedJob) -> None:
    assert not GenerateJob.unpack(job.payload).events
    finish(consumer, job)


def test_a_request_that_does_not_stream_asks_for_no_progress(gateway: Gateway, worker: FakeWorker) -> None:
    worker.answer = answer_by_payload
    response = gateway.client.post("/generate", json={"class_id": 1})
    assert response.status_code == 200
