import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from models.bundle import Bundle
from tests.gateway_harness import FakeWorker, Gateway, gateway_running, until

pytest_plugins = ["tests.gateway_fixtures"]

JSON = "Content-Type: application/json\r\n"


@pytest.fixture(scope="module")
def gateway(plain_bundle: Bundle, gateway_redis: str) -> Iterator[Gateway]:
    """A gateway with small limits."""
    limits = {
        "header_timeout_s": 0.5,
        "body_timeout_s": 0.6,
        "upload_bytes": 5000,
        "body_bytes": 20_000,
    }
    with gateway_running(plain_bundle, gateway_redis, **limits) as running:
        yield running


@contextmanager
def connected(gateway: Gateway) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as client:
        yield client


def answer(client: socket.socket) -> tuple[int, str, bytes]:
    """Status, head and body of one answer; (0, "", b"") when the connection ends without one."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = client.recv(65536)
        if not part:
            return 0, "", b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    text = head.decode().lower()
    length = int(re.findall(r"content-length: (\d+)", text)[0])
    while len(body) < length:
        body += client.recv(65536)
    return int(text.split()[1]), text, body


def check_error(client: socket.socket, status: int, code: str) -> str:
    """The message of the error that comes, after checking its shape."""
    got, head, body = answer(client)
    assert got == status, body
    error = json.loads(body)["error"]
    assert error["code"] == code
    assert f"x-request-id: {error['request_id']}" in head
    assert "content-security-policy: default-src 'self'" in head
    return str(error["message"])


def is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True


def trickle(client: socket.socket, data: bytes, pause_s: float = 0.05) -> float:
    """Seconds for which `data` could be sent again and again, 8 at most."""
    began = time.monotonic()
    with suppress(ConnectionError):
        while time.monotonic() - began < 8:
            client.sendall(data)
            time.sleep(pause_s)
    return time.monotonic() - began


def is_healthy(gateway: Gateway) -> bool:
    return gateway.client.get("/livez").status_code == 200


# -- headers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_text",
    [
        "GET /livez HTTP/1.1\r\nHost: x\r\nX-Big: " + "b" * 20_000 + "\r\n\r\n",
        "GET /livez HTTP/1.1\r\nHost: x\r\n" + "".join(f"X-{k}: {'b' * 90}\r\n" for k in range(200)) + "\r\n",
        "GET /livez?q=" + "q" * 20_000 + " HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /livez HTTP/1.1\r\nHost: x\r\nX-Endless: " + "b" * 20_000,
        "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nX: " + "b" * 20_000 + "\r\n\r\n{}{}{}{}{",
    ],
    ids=["one header", "many headers", "target", "endless header", "with a body"],
)
def test_headers_over_16_kb_are_431(gateway: Gateway, request_text: str) -> None:
    with connected(gateway) as client:
        client.sendall(request_text.encode())
        assert "16,384 bytes" in check_error(client, 431, "headers_too_large")
        assert is_closed(client)
    assert is_healthy(gateway)


def test_headers_that_come_in_pieces_are_counted_together(gateway: Gateway) -> None:
    with connected(gateway) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
        for k in range(90):
            client.sendall(f"X-{k}: {'b' * 200}\r\n".encode())
        check_error(client, 431, "headers_too_large")
    assert is_healthy(gateway)


def test_headers_just_below_the_limit_pass(gateway: Gateway) -> None:
    with connected(gateway) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Big: " + b"b" * 16_000 + b"\r\n\r\n")
        assert answer(client)[0] == 200
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer(client)[0] == 200


def test_headers_that_do_not_come_are_408_and_silence_is_cut_off(gateway: Gateway) -> None:
    began = time.monotonic()
    with connected(gateway) as silent, connected(gateway) as slow:
        slow.sendall(b"GET /livez HTTP/1.1\r\nHost:")
        assert "0.5 s" in check_error(slow, 408, "request_timeout")
        assert is_closed(slow)
        assert is_closed(silent)
    assert 0.4 < time.monotonic() - began < 3


def test_a_trickle_does_not_extend_the_time_for_headers(gateway: Gateway) -> None:
    with connected(gateway) as client:
        assert trickle(client, b"X") < 3


def test_the_next_request_of_a_connection_has_its_own_time(gateway: Gateway) -> None:
    with connected(gateway) as client:
        for _ in range(3):
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer(client)[0] == 200
            time.sleep(0.3)
        client.sendall(b"GET /livez HTT")
        check_error(client, 408, "request_timeout")


@pytest.mark.parametrize(
    "text",
    [
        "nonsense\r\n\r\n",
        "GET / HTTP/1.1 more\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET /\u00ff HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_what_is_no_http_is_400_or_closed(gateway: Gateway, text: str) -> None:
    with connected(gateway) as client:
        client.sendall(text.encode("latin-1"))
        status, _, body = answer(client)
        assert status in (0, 400)
        if status:
            assert json.loads(body)["error"]["code"] == "bad_request"
        assert is_closed(client)
    assert is_healthy(gateway)


# -- bodies --------------------------------------------------------------------------------------------------


def test_a_declared_length_over_the_limit_is_413_at_once(gateway: Gateway, worker: FakeWorker) -> None:
    for path, content_type, limit in (
        ("/generate", "application/json", "20,000"),
        ("/tokenize", "image/png", "5,000"),
        ("/tokenize", "multipart/form-data; boundary=b", "20,000"),
    ):
        with connected(gateway) as client:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n"
            client.sendall(head.encode() + b"Content-Length: 99999999999999999999999\r\n\r\n")
            status = answer_or_close(client)
            assert status in (0, 400, 413)
        with connected(gateway) as client:
            client.sendall(head.encode() + b"Content-Length: 5000000000\r\n\r\n")
            assert limit in check_error(client, 413, "payload_too_large")
    assert is_healthy(gateway)


def answer_or_close(client: socket.socket) -> int:
    try:
        return answer(client)[0]
    except ConnectionError:
        return 0


def test_a_chunked_flood_is_413_and_the_connection_ends(gateway: Gateway, worker: FakeWorker) -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    for path, content_type in (
        ("/generate", "application/json"),
        ("/tokenize", "image/png"),
        ("/tokenize", "multipart/form-data; boundary=b"),
    ):
        with connected(gateway) as client:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n"
            client.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunk)
            check_error(client, 413, "payload_too_large")
            assert trickle(client, chunk, pause_s=0) < 5
    assert is_healthy(gateway)


def test_a_client_that_sends_everything_first_still_reads_the_refusal(
    gateway: Gateway, worker: FakeWorker
) -> None:
    for size in (6000, 2_000_000):
        response = gateway.client.post(
            "/tokenize", content=b"x" * size, headers={"Content-Type": "image/png"}
        )
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "payload_too_large"


def test_a_body_that_does_not_come_in_time_is_408(gateway: Gateway, worker: FakeWorker) -> None:
    for path, content_type in (("/generate", "application/json"), ("/tokenize", "image/png")):
        began = time.monotonic()
        with connected(gateway) as client:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n"
            client.sendall(head.encode() + b'Content-Length: 100\r\n\r\n{"class')
            assert "7 bytes" in check_error(client, 408, "request_timeout")
        assert 0.5 < time.monotonic() - began < 3


def test_a_trickle_does_not_extend_the_time_for_the_body(gateway: Gateway, worker: FakeWorker) -> None:
    began = time.monotonic()
    with connected(gateway) as client:
        client.sendall(f"POST /generate HTTP/1.1\r\nHost: x\r\n{JSON}Content-Length: 1000\r\n\r\n".encode())
        client.settimeout(0.05)
        status = 0
        while not status and time.monotonic() - began < 5:
            client.sendall(b" ")
            try:
                status = answer(client)[0]
            except TimeoutError:
                continue
        assert status == 408
    assert time.monotonic() - began < 3


def test_a_client_that_leaves_within_its_body_leaves_nothing_behind(
    gateway: Gateway, worker: FakeWorker
) -> None:
    for _ in range(20):
        with connected(gateway) as client:
            client.sendall(
                f"POST /generate HTTP/1.1\r\nHost: x\r\n{JSON}Content-Length: 100\r\n\r\n{{".encode()
            )
    until(lambda: len(gateway.server.server_state.connections) <= 1)
    assert worker.claimed == []
    assert is_healthy(gateway)


def test_the_rest_of_a_body_that_nobody_reads_cannot_hold_the_connection(gateway: Gateway) -> None:
    with connected(gateway) as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        check_error(client, 404, "not_found")
        assert trickle(client, b"x") < 5


def test_many_files_or_large_ones_are_refused(gateway: Gateway, worker: FakeWorker) -> None:
    files = [("file", b"x" * 10) for _ in range(17)]
    response = gateway.client.post("/tokenize", files=files)
    assert response.status_code == 422
    assert "1 to 16" in response.json()["error"]["message"]
    response = gateway.client.post("/tokenize", files={"file": b"x" * 6000})
    assert response.status_code == 413
    for wrong in ({"picture": b"x"}, {"file": b""}):
        assert gateway.client.post("/tokenize", files=wrong).status_code == 422
    response = gateway.client.post("/tokenize", data={"file": "x"}, files={"file": b"x"})
    assert response.status_code == 422


def test_json_with_a_flood_of_values_is_refused(plain_bundle: Bundle, gateway_redis: str) -> None:
    with gateway_running(plain_bundle, gateway_redis) as gateway:
        worker = FakeWorker(gateway, gateway_redis)
        worker.start()
        try:
            until(lambda: gateway.client.get("/readyz").status_code == 200)
            body = b'{"kind": "generate", ' + b",".join(b'"%d":0' % k for k in range(300_000)) + b"}"
            headers = {"Content-Type": "application/json"}
            response = gateway.client.post("/jobs", content=body, headers=headers)
            assert response.status_code == 422
            assert "200,000" in response.json()["error"]["message"]
        finally:
            worker.stop()


def test_pipelined_requests_are_answered_in_order(gateway: Gateway) -> None:
    with connected(gateway) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
        text = b""
        while text.count(b"HTTP/1.1") < 2:
            text += client.recv(65536)
        assert re.findall(rb"HTTP/1.1 (\d+)", text) == [b"200", b"404"]
