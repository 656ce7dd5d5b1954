import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from models.bundle import Bundle
from service.gateway import http_server
from service.gateway.hosts import is_ours, names_of
from service.logs import JsonFormatter, TextFormatter
from service.settings import Settings
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
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Big: " + "b" * 20_000 + "\r\n\r\n",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\n"
        + "".join(f"X-{k}: {'b' * 90}\r\n" for k in range(200))
        + "\r\n",
        "GET /livez?q=" + "q" * 20_000 + " HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Endless: " + "b" * 20_000,
        "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nX: "
        + "b" * 20_000
        + "\r\n\r\n{}{}{}{}{",
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
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n")
        for k in range(90):
            client.sendall(f"X-{k}: {'b' * 200}\r\n".encode())
        check_error(client, 431, "headers_too_large")
    assert is_healthy(gateway)


def test_headers_just_below_the_limit_pass(gateway: Gateway) -> None:
    with connected(gateway) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Big: " + b"b" * 16_000 + b"\r\n\r\n")
        assert answer(client)[0] == 200
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer(client)[0] == 200


def test_headers_that_do_not_come_are_408_and_silence_is_cut_off(gateway: Gateway) -> None:
    began = time.monotonic()
    with connected(gateway) as silent, connected(gateway) as slow:
        slow.sendall(b"GET /livez HTTP/1.1\r\nHost:")
        assert "0.5 s" in check_error(slow, 408, "request_timeout")
        assert is_closed(slow)
        assert is_closed(silent)
    assert 0.4 < time.monotonic() - began < 7


def test_a_trickle_does_not_extend_the_time_for_headers(gateway: Gateway) -> None:
    with connected(gateway) as client:
        assert trickle(client, b"X") < 7


def test_the_next_request_of_a_connection_has_its_own_time(gateway: Gateway) -> None:
    with connected(gateway) as client:
        for _ in range(3):
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert answer(client)[0] == 200
            time.sleep(0.3)
        client.sendall(b"GET /livez HTT")
        check_error(client, 408, "request_timeout")


def test_a_request_names_one_host_except_in_http_1_0(gateway: Gateway) -> None:
    for hosts, version, status in (
        ("", "1.1", 400),
        ("Host: localhost\r\nHost: a\r\n", "1.1", 400),
        ("Host: localhost\r\nHost: a\r\n", "1.0", 400),
        ("", "1.0", 200),
    ):
        with connected(gateway) as client:
            client.sendall(f"GET /livez HTTP/{version}\r\n{hosts}\r\n".encode())
            if status == 200:
                assert answer(client)[0] == 200
            else:
                assert "Host" in check_error(client, 400, "bad_request")
                assert is_closed(client)


@pytest.mark.parametrize(
    "text",
    [
        "nonsense\r\n\r\n",
        "GET / HTTP/1.1 more\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET /\u00ff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
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
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
            client.sendall(head.encode() + b"Content-Length: 99999999999999999999999\r\n\r\n")
            status = answer_or_close(client)
            assert status in (0, 400, 413)
        with connected(gateway) as client:
            client.sendall(head.encode() + b"Content-Length: 5000000000000000000\r\n\r\n")
            message = check_error(client, 413, "payload_too_large")
            assert limit in message
            assert "5,000,000,000,000,000,000 bytes" in message
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
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
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
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
            client.sendall(head.encode() + b'Content-Length: 100\r\n\r\n{"class')
            assert "7 bytes" in check_error(client, 408, "request_timeout")
        assert 0.5 < time.monotonic() - began < 7


def test_a_trickle_does_not_extend_the_time_for_the_body(gateway: Gateway, worker: FakeWorker) -> None:
    began = time.monotonic()
    with connected(gateway) as client:
        client.sendall(
            f"POST /generate HTTP/1.1\r\nHost: localhost\r\n{JSON}Content-Length: 1000\r\n\r\n".encode()
        )
        client.settimeout(0.05)
        status = 0
        while not status and time.monotonic() - began < 8:
            client.sendall(b" ")
            try:
                status = answer(client)[0]
            except TimeoutError:
                continue
        assert status == 408
    assert time.monotonic() - began < 7


def test_a_client_that_leaves_within_its_body_leaves_nothing_behind(
    gateway: Gateway, worker: FakeWorker
) -> None:
    for _ in range(20):
        with connected(gateway) as client:
            client.sendall(
                f"POST /generate HTTP/1.1\r\nHost: localhost\r\n{JSON}Content-Length: 100\r\n\r\n{{".encode()
            )
    until(lambda: len(gateway.server.server_state.connections) <= 1)
    assert worker.claimed == []
    assert is_healthy(gateway)


def test_the_rest_of_a_body_that_nobody_reads_cannot_hold_the_connection(gateway: Gateway) -> None:
    with connected(gateway) as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
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


def test_json_with_a_flood_of_values_or_fields_is_refused(plain_bundle: Bundle, gateway_redis: str) -> None:
    with worked(plain_bundle, gateway_redis) as gateway:
        for count, allowed in ((300_000, "200,000"), (30_000, "about 30,001 fields; at most 20,000")):
            body = b'{"kind": "generate", ' + b",".join(b'"%d":0' % k for k in range(count)) + b"}"
            headers = {"Content-Type": "application/json"}
            response = gateway.client.post("/jobs", content=body, headers=headers)
            assert response.status_code == 422
            assert allowed in response.json()["error"]["message"]


def test_a_compressed_body_is_415(gateway: Gateway, worker: FakeWorker) -> None:
    bodies = {
        "/generate": "application/json",
        "/tokenize": "image/png",
        "/reconstruct": "multipart/form-data",
    }
    for path, media in bodies.items():
        headers = {"Content-Type": media, "Content-Encoding": "gzip"}
        refused = gateway.client.post(path, content=b"\x1f\x8b", headers=headers)
        assert refused.status_code == 415
        assert refused.json()["error"]["code"] == "unsupported_media_type"
        assert "content encoding is gzip" in refused.json()["error"]["message"]
    plain = {"Content-Encoding": "Identity"}
    assert gateway.client.post("/generate", json={"class_id": 1}, headers=plain).status_code == 200


def test_pipelined_requests_are_answered_in_order(gateway: Gateway) -> None:
    with connected(gateway) as client:
        client.sendall(
            b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        text = b""
        while text.count(b"HTTP/1.1") < 2:
            text += client.recv(65536)
        assert re.findall(rb"HTTP/1.1 (\d+)", text) == [b"200", b"404"]


# -- slow readers, connections, memory -----------------------------------------------------------------------


@contextmanager
def busy_reader(gateway: Gateway) -> Iterator[socket.socket]:
    """A client that asks for more than fits on the way to it."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", gateway.port))
        client.settimeout(10)
        client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200)
        yield client


@pytest.mark.parametrize("reads", [False, True], ids=["nothing", "a trickle"])
def test_a_client_that_hardly_reads_is_cut_off(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    monkeypatch.setattr(http_server, "_READ_S", 0.3)
    until(lambda: len(gateway.server.server_state.connections) <= 1)
    with busy_reader(gateway) as client:
        until(lambda: len(gateway.server.server_state.connections) == 2)

        def cut_off() -> bool:
            if reads:
                client.recv(10)
            return len(gateway.server.server_state.connections) <= 1

        until(cut_off)
    assert is_healthy(gateway)


def test_with_all_connections_taken_the_one_idle_longest_makes_room(
    plain_bundle: Bundle, gateway_redis: str
) -> None:
    with gateway_running(plain_bundle, gateway_redis, max_connections=3) as gateway:
        gateway.client.close()
        with connected(gateway) as first, connected(gateway) as second, connected(gateway) as third:
            until(lambda: len(gateway.server.server_state.connections) == 3)
            first.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert answer(first)[0] == 200
            with connected(gateway) as fourth:
                fourth.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert answer(fourth)[0] == 200
                # The first one has been of use since.
                assert is_closed(second)
                for good in (first, third):
                    good.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    assert answer(good)[0] == 200


@contextmanager
def worked(bundle: Bundle, redis_url: str, **limits: int) -> Iterator[Gateway]:
    """A gateway with `limits` and a worker."""
    with gateway_running(bundle, redis_url, **limits) as gateway:
        worker = FakeWorker(gateway, redis_url)
        worker.start()
        try:
            until(lambda: gateway.client.get("/readyz").status_code == 200)
            yield gateway
        finally:
            worker.stop()


@contextmanager
def stalled_body(gateway: Gateway, size: int = 0) -> Iterator[socket.socket]:
    """A client whose body is being waited for, of which `size` bytes have come."""
    with connected(gateway) as client:
        head = f"POST /generate HTTP/1.1\r\nHost: localhost\r\n{JSON}Expect: 100-continue\r\n"
        client.sendall(f"{head}Content-Length: 5000\r\n\r\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        client.sendall(b" " * size)
        yield client


def test_a_connection_too_many_is_503_when_all_have_a_request(
    plain_bundle: Bundle, gateway_redis: str
) -> None:
    with worked(plain_bundle, gateway_redis, max_connections=2) as gateway:
        gateway.client.close()
        until(lambda: not gateway.server.server_state.connections)
        with stalled_body(gateway), stalled_body(gateway), connected(gateway) as third:
            assert "2 requests are under way" in check_error(third, 503, "unavailable")
            assert is_closed(third)
        until(lambda: not gateway.server.server_state.connections)
        with connected(gateway) as fourth:
            fourth.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert answer(fourth)[0] == 200


def test_stalled_bodies_share_a_bounded_memory(plain_bundle: Bundle, gateway_redis: str) -> None:
    with worked(plain_bundle, gateway_redis, bodies_bytes=8000) as gateway:
        room = gateway.app.state.desk.small_body.room
        with stalled_body(gateway, 4000) as first, stalled_body(gateway, 3990):
            until(lambda: room.taken == 7990)
            full = gateway.client.post("/generate", json={"class_id": 1})
            assert full.status_code == 503
            assert int(full.headers["retry-after"]) >= 1
            assert "8,000 are allowed" in full.json()["error"]["message"]
            first.close()
            until(lambda: room.taken == 3990)
            assert gateway.client.post("/generate", json={"class_id": 1}).status_code == 200
        until(lambda: room.taken == 0)


# -- HEAD, methods, names ------------------------------------------------------------------------------------


def test_head_is_answered_like_get_without_a_body(gateway: Gateway, worker: FakeWorker) -> None:
    for path in ("/", "/livez", "/readyz", "/openapi.json", "/static/docs.css", "/nowhere", "/jobs/none"):
        asked, told = gateway.client.get(path), gateway.client.head(path)
        assert (told.status_code, told.content) == (asked.status_code, b"")
        kept = ("content-type", "content-length", "content-security-policy")
        assert [told.headers.get(name) for name in kept] == [asked.headers.get(name) for name in kept]
    job = gateway.client.post("/jobs", json={"kind": "generate", "class_id": 1}).headers["location"]
    told = gateway.client.head(f"{job}/events")
    assert told.headers["content-type"].startswith("text/event-stream")
    metrics = gateway.client.get("/metrics").text
    assert 'maskbit_http_requests_total{code="200",method="HEAD",route="/livez"} 1.0' in metrics


def test_405_names_all_methods_of_the_path(gateway: Gateway) -> None:
    allowed = {"/jobs/x": "DELETE, GET, HEAD", "/generate": "POST", "/static/app.js": "GET, HEAD"}
    for path, methods in allowed.items():
        reply = gateway.client.put(path)
        assert (reply.status_code, reply.headers["allow"]) == (405, methods)
        assert methods in reply.json()["error"]["message"]


def test_on_loopback_only_addresses_and_localhost_are_answered(gateway: Gateway) -> None:
    for host in ("127.0.0.1:8000", "localhost", "LocalHost:1", "a.localhost", "[::1]:80", "10.1.2.3"):
        assert gateway.client.get("/livez", headers={"Host": host}).status_code == 200, host
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost@evil", "", "[::1"):
        reply = gateway.client.get("/livez", headers={"Host": host})
        assert reply.status_code == 421, host
        assert reply.json()["error"]["code"] == "misdirected"
        assert reply.headers["x-request-id"] == reply.json()["error"]["request_id"]


@pytest.mark.parametrize(
    ("host", "allowed", "names"),
    [
        ("127.0.0.1", None, set()),
        ("::1", None, set()),
        ("localhost", None, set()),
        ("0.0.0.0", None, None),
        ("::", None, None),
        ("10.0.0.7", None, None),
        ("127.0.0.1", "*", None),
        ("0.0.0.0", "Pictures.example, other.example", {"pictures.example", "other.example"}),
    ],
)
def test_the_names_that_are_answered_follow_from_the_settings(
    host: str, allowed: str | None, names: set[str] | None
) -> None:
    assert names_of(Settings(host=host, allowed_hosts=allowed)) == names
    assert names is None or is_ours("127.0.0.1:80", frozenset(names))
    assert not names or is_ours("pictures.example:443", frozenset(names))


@pytest.mark.parametrize("path", ["/<script>alert(1)</script>", "/jobs/<img src=x onerror=alert(1)>"])
def test_hostile_text_comes_back_as_json_that_no_browser_takes_for_a_page(
    gateway: Gateway, path: str
) -> None:
    reply = gateway.client.get(path)
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["content-security-policy"].startswith("default-src 'self'")


def test_what_clients_send_leaves_no_control_characters_in_the_log(
    gateway: Gateway, worker: FakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for target in (b"/a%0d%0aforged%1b[31m", b"/a\x1b[31m", b"/a\r\nforged: 1", b"/\xc2\x85a"):
        with connected(gateway) as client:
            client.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer_or_close(client)
    hostile = "evil\x1b[2J\u2028"
    gateway.client.post("/generate", json={"class_name": hostile, "model": hostile})
    gateway.client.get("/livez", headers={b"X-Request-ID": b"a\tb", b"User-Agent": b"a\x9bb"})
    for lines in (TextFormatter("%(message)s"), JsonFormatter()):
        text = "".join(lines.format(record) for record in caplog.records)
        assert not [letter for letter in text if not letter.isprintable()]
    assert any("GET /a%0d%0aforged%1b[31m 404" in record.getMessage() for record in caplog.records)
