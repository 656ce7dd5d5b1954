"""API keys: files and variables, who gets in, whose jobs are whose, rotation, guessing."""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.bundle import Bundle
from models.errors import ConfigError
from service.errors import ServiceError
from service.gateway.api_keys import KeySet, read_compact, read_file
from service.gateway.failed_keys import ALLOWED, MAX_ADDRESSES, WINDOW_S, FailedKeys
from service.gateway.key_ring import KeyRing
from tests.gateway_harness import FakeWorker, Gateway, gateway_running, until

SHOP, LAB = "maskbit_shop", "maskbit_lab"
ORDER = {"kind": "generate", "class_id": 1, "format": "tokens"}
Start = Callable[..., AbstractContextManager[Gateway]]


def sha(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


BOTH = f"shop:{sha(SHOP)},lab:{sha(LAB)}"


@pytest.fixture
def start(plain_bundle: Bundle, gateway_redis: str) -> Start:
    """Starts a gateway with a worker."""

    @contextmanager
    def one(**settings: Any) -> Iterator[Gateway]:
        with gateway_running(plain_bundle, gateway_redis, **settings) as gateway:
            fake = FakeWorker(gateway, gateway_redis)
            fake.start()
            try:
                until(lambda: gateway.client.get("/readyz").status_code == 200)
                yield gateway
            finally:
                fake.stop()

    return one


@pytest.fixture(scope="module")
def keyed(plain_bundle: Bundle, gateway_redis: str) -> Iterator[Gateway]:
    with gateway_running(plain_bundle, gateway_redis, api_keys=BOTH) as gateway:
        yield gateway


# -- what is read ----------------------------------------------------------------------------------------


def test_a_file_and_the_compact_form_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(
        f'[keys.shop]\nsha256 = "{sha(SHOP)}"\nrequests_per_minute = 60\nburst = 5\n'
        f'[keys."lab.eu"]\nsha256 = ["{sha(LAB)}", "{sha("old")}"]\nimages_per_day = 7\nconcurrent_jobs = 2\n'
    )
    text = f"shop:{sha(SHOP)}:requests_per_minute=60:burst=5,\n lab.eu:{sha(LAB)}:images_per_day=7"
    shop, lab = read_file(file)
    assert read_compact(text)[0] == shop
    assert (lab.name, lab.images_per_day, lab.concurrent_jobs) == ("lab.eu", 7, 2)
    keys = KeySet((shop, lab))
    for key, name in ((SHOP, "shop"), (LAB, "lab.eu"), ("old", "lab.eu")):
        caller = keys.find(key)
        assert caller is not None
        assert caller.tenant == name
    assert keys.find("") is None
    assert keys.find(sha(SHOP)) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[keys.shop\n", "line 1"),
        ("", "0 API keys"),
        ('name = "x"', "'name'"),
        ("keys = 3", "[keys.NAME]"),
        ("[keys]\nshop = 3", "[keys.shop]"),
        ('[keys.shop]\nsha256 = "secret"', "[keys.shop]: sha256: 64 digits"),
        ("[keys.shop]\nburst = 3", "[keys.shop]: sha256"),
        (f'[keys.shop]\nsha256 = "{sha(SHOP)}"\nburst = 3', "burst needs requests_per_minute"),
        (f'[keys.shop]\nsha256 = "{sha(SHOP)}"\ncolour = 3', "[keys.shop]: colour"),
        (f'[keys.shop]\nsha256 = "{sha(SHOP)}"\nrequests_per_minute = 0', "requests_per_minute"),
        (f'[keys.shop]\nsha256 = "{sha(SHOP)}"\nname = "lab"', "[keys.shop]"),
        (f'[keys."a b"]\nsha256 = "{sha(SHOP)}"', "A-Z a-z 0-9"),
        (f'[keys."{{x}}"]\nsha256 = "{sha(SHOP)}"', "A-Z a-z 0-9"),
        (
            f'[keys.a]\nsha256 = "{sha(SHOP)}"\n[keys.b]\nsha256 = "{sha(SHOP)}"',
            "'b': its sha256 is there twice",
        ),
        *(
            (f'[keys.a]\nsha256 = "{sha(SHOP)}"\nrequests_per_minute = {number}', "valid integer")
            for number in ("true", '"600"', "600.0")
        ),
    ],
)
def test_a_wrong_file_says_where_and_never_what(content: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        KeyRing(None, file)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "entry 1"),
        ("maskbit_a-key-itself", "NAME:SHA256"),
        (f"shop:{sha(SHOP)}:rate=3", "rate"),
        (f"shop:{sha(SHOP)}:burst", "burst"),
        (
            f"shop:{sha(SHOP)}:requests_per_minute=true",
            "requests_per_minute: Input should be a valid integer",
        ),
        (f"shop:{sha(SHOP)}:requests_per_minute={'9' * 5000}", "requests_per_minute: Input should be"),
        (f"shop:{sha(SHOP)}:maskbit_secret-key-that-is-no-field", "entry 1 of MASKBIT_API_KEYS: a field: "),
        (f"shop:{sha(SHOP)}:sha256={sha(LAB)}", "entry 1 of MASKBIT_API_KEYS has a field twice"),
        (f"shop:{sha(SHOP)},shop:{sha(LAB)}", "'shop': its name is there twice"),
    ],
)
def test_a_wrong_variable_says_where_and_never_what(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        KeyRing(text, None)
    assert words in str(caught.value)
    assert not any(part in str(caught.value) for part in ("a-key-itself", "secret-key"))


def test_a_missing_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        KeyRing(None, tmp_path / "none.toml")


def test_a_new_key_opens_the_gateway_that_has_its_entry(start: Start, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "maskbit_cli", "keys", "new", "shop", "--concurrent-jobs", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    key = done.stderr.strip().rpartition(" ")[2]
    assert key not in done.stdout
    assert len(key) > 43
    file = tmp_path / "keys.toml"
    file.write_text(done.stdout)
    with start(api_keys_file=file) as gateway:
        assert gateway.client.get("/info", headers=bearer(key)).status_code == 200
        assert gateway.client.get("/info", headers=bearer(key + "x")).status_code == 401


# -- who gets in -----------------------------------------------------------------------------------------


def test_without_a_key_only_the_open_paths_answer(keyed: Gateway) -> None:
    for path in ("/", "/static/app.js", "/livez", "/metrics", "/docs", "/openapi.json"):
        assert keyed.client.get(path).status_code == 200, path
    assert keyed.client.get("/readyz").status_code in (200, 503)
    document = keyed.client.get("/openapi.json").json()
    closed = {path: methods for path, methods in document["paths"].items() if "security" in str(methods)}
    assert {"/generate", "/jobs", "/jobs/{job_id}", "/info", "/classes", "/tokenize"} <= set(closed)
    for path in (*closed, "/static", "/nothing"):
        for method in ("GET", "POST", "DELETE", "OPTIONS"):
            reply = keyed.client.request(method, path)
            assert reply.status_code == 401, (method, path)
            assert reply.headers["www-authenticate"] == "Bearer"
            assert reply.json()["error"]["code"] == "unauthorized"
            assert reply.json()["error"]["request_id"] == reply.headers["x-request-id"]


def test_only_who_has_a_key_sees_the_workers(start: Start) -> None:
    with start(api_keys=BOTH) as gateway:
        for headers in ({}, bearer("wrong"), bearer(SHOP) | {"X-API-Key": LAB}):
            assert gateway.client.get("/readyz", headers=headers).json() == {
                "ready": True,
                "models": {"tiny": True},
            }
        shown = gateway.client.get("/readyz", headers=bearer(SHOP)).json()["workers"]
        assert [one["runtime"] for one in shown] == ["noop"]


@pytest.mark.parametrize(
    "target",
    ["/%69nfo", "//info", "/./info", "/info/", "/static/../info", "/static/%2e%2e/info", "/docs/../info"],
)
def test_no_spelling_of_a_path_leads_around_the_gate(keyed: Gateway, target: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", keyed.port, timeout=20)
    connection.request("GET", target)
    reply = connection.getresponse()
    assert reply.status in (401, 404)
    assert b"bundle" not in reply.read()
    connection.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": f"Bearer {SHOP}"}, 200),
        ({"Authorization": f"bearer  {SHOP}"}, 200),
        ({"X-API-Key": SHOP}, 200),
        ({"X-API-Key": SHOP, "Authorization": f"Bearer {SHOP}"}, 200),
        ({"X-API-Key": SHOP, "Authorization": "Basic eDp5"}, 200),
        ({"X-API-Key": SHOP, "Authorization": f"Bearer {LAB}"}, 401),
        ({"Authorization": SHOP}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"X-API-Key": ""}, 401),
        ({"X-API-Key": sha(SHOP)}, 401),
        ({"Authorization": "Bearer \xff\xfe"}, 401),
    ],
)
def test_a_key_comes_in_one_of_two_headers(keyed: Gateway, headers: dict[str, str], status: int) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    assert keyed.client.get("/info", headers=raw).status_code == status


def test_without_keys_everybody_may_come_in_and_the_document_asks_for_none(gateway: Gateway) -> None:
    assert gateway.client.get("/info").status_code == 200
    assert gateway.client.get("/info", headers=bearer("whatever")).status_code == 200
    document = gateway.client.get("/openapi.json").json()
    assert "securitySchemes" not in document["components"]


def test_the_document_names_keys_and_refusals_where_one_is_needed(keyed: Gateway) -> None:
    document = keyed.client.get("/openapi.json").json()
    assert {one["type"] for one in document["components"]["securitySchemes"].values()} == {"http", "apiKey"}
    generate = document["paths"]["/generate"]["post"]
    assert generate["security"] == [{"bearer": []}, {"header": []}]
    assert {"401", "429"} <= set(generate["responses"])
    assert "security" not in document["paths"]["/livez"]["get"]


def test_listening_to_others_without_keys_is_warned_about(tmp_path: Path, gateway_redis: str) -> None:
    command = [sys.executable, "-c", _RUN_AND_STOP, gateway_redis]
    warning = "no API keys are set"
    for host, keys, expected in (("0.0.0.0", "", 1), ("127.0.0.1", "", 0), ("0.0.0.0", BOTH, 0)):
        done = subprocess.run([*command, host, keys], capture_output=True, text=True, timeout=60, check=True)
        assert done.stderr.count(warning) == expected, done.stderr


_RUN_AND_STOP = """
import logging, sys
import service.gateway.app as app
from service.settings import Settings
logging.basicConfig(level=logging.INFO)
redis_url, host, keys = sys.argv[1:]
app.make_server = lambda *_: type("Server", (), {"run": lambda self, sockets: None})()
app.run_gateway(Settings(redis_url=redis_url, host=host, port=0, api_keys=keys or None))
"""


# -- whose jobs ------------------------------------------------------------------------------------------


def test_two_keys_never_see_each_others_jobs(start: Start) -> None:
    with start(api_keys=BOTH) as gateway:
        client = gateway.client
        first = client.post("/jobs", json=ORDER, headers=bearer(SHOP) | {"Idempotency-Key": "one"})
        mine = first.headers["location"]
        until(lambda: client.get(mine, headers=bearer(SHOP)).status_code == 200)
        unknown = f"/jobs/{'0' * 32}"
        for method, suffix in (("GET", ""), ("GET", "/events"), ("DELETE", "")):
            foreign = client.request(method, mine + suffix, headers=bearer(LAB))
            nothing = client.request(method, unknown + suffix, headers=bearer(LAB))
            assert (foreign.status_code, nothing.status_code) == (404, 404)
            same = foreign.json()["error"]["message"].replace(mine[-32:], unknown[-32:])
            assert same == nothing.json()["error"]["message"]
        other = client.post("/jobs", json=ORDER, headers=bearer(LAB) | {"Idempotency-Key": "one"})
        assert other.json()["id"] != first.json()["id"]
        assert client.get(mine, headers=bearer(SHOP)).status_code == 200


def test_a_key_has_its_own_bound_of_unfinished_jobs(plain_bundle: Bundle, gateway_redis: str) -> None:
    keys = f"small:{sha('s')}:concurrent_jobs=2,large:{sha('l')}"
    with gateway_running(plain_bundle, gateway_redis, api_keys=keys) as gateway:
        fake = FakeWorker(gateway, gateway_redis)
        fake.start()
        fake.gate.clear()
        try:
            until(lambda: gateway.client.get("/readyz").status_code == 200)
            codes = [
                gateway.client.post("/jobs", json=ORDER, headers=bearer("s")).status_code for _ in range(3)
            ]
            assert codes == [202, 202, 429]
            reply = gateway.client.post("/jobs", json=ORDER, headers=bearer("s"))
            assert "2 unfinished jobs" in reply.json()["error"]["message"]
            assert int(reply.headers["retry-after"]) >= 1
            assert gateway.client.post("/jobs", json=ORDER, headers=bearer("l")).status_code == 202
        finally:
            fake.stop()


# -- rotation --------------------------------------------------------------------------------------------


def entry(name: str, *keys: str) -> str:
    return f"[keys.{name}]\nsha256 = {json.dumps([sha(key) for key in keys])}\n"


def test_a_changed_file_counts_without_a_restart_and_a_broken_one_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, now = tmp_path / "keys.toml", [0.0]
    file.write_text(entry("shop", "first"))
    ring = KeyRing(None, file, clock=lambda: now[0])

    def known(*keys: str) -> list[bool]:
        now[0] += 2
        return [ring.find(key) is not None for key in keys]

    file.write_text(entry("shop", "second", "first"))
    assert known("first", "second") == [True, True]
    file.write_text(entry("shop", "second") + "\n")
    assert known("first", "second") == [False, True]
    with caplog.at_level(logging.INFO):
        for content in ("[broken", "", entry("shop", "third") + "colour = 1"):
            file.write_text(content)
            assert known("second", "third") == [True, False]
            assert known("second", "third") == [True, False]
        file.unlink()
        assert known("second", "third") == [True, False]
        assert known("second", "third") == [True, False]
    assert [line.levelname for line in caplog.records] == ["ERROR"] * 4
    # As Kubernetes does: a link that leads elsewhere at once.
    (tmp_path / "v2").write_text(entry("shop", "fourth"))
    file.symlink_to(tmp_path / "v2")
    assert known("second", "fourth") == [False, True]


def test_a_key_that_is_taken_out_of_the_file_gets_nobody_in_any_more(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(entry("shop", "old"))
    with start(api_keys_file=file, api_keys=f"lab:{sha(LAB)}") as gateway:

        def status(key: str) -> int:
            return gateway.client.get("/info", headers=bearer(key)).status_code

        assert (status("old"), status(LAB)) == (200, 200)
        file.write_text(entry("shop", "new", "newer"))
        until(lambda: status("new") == 200)
        assert status("old") in (401, 429)
        assert status(LAB) == 200


# -- guessing --------------------------------------------------------------------------------------------


def test_ten_wrong_keys_a_minute_are_enough_but_a_right_one_still_gets_in(start: Start) -> None:
    with start(api_keys=BOTH) as gateway:
        replies = [gateway.client.get("/info", headers=bearer(f"guess {k}")) for k in range(ALLOWED + 2)]
        assert [reply.status_code for reply in replies] == [401] * ALLOWED + [429] * 2
        assert 1 <= int(replies[-1].headers["retry-after"]) <= WINDOW_S
        assert replies[-1].json()["error"]["code"] == "too_many_failed_keys"
        assert gateway.client.get("/info").status_code == 401
        assert gateway.client.get("/info", headers=bearer(SHOP)).status_code == 200
        metrics = gateway.client.get("/metrics").text
        assert f"maskbit_failed_keys_total {ALLOWED + 2}.0" in metrics
        assert 'maskbit_shed_total{reason="too_many_failed_keys"} 2.0' in metrics


@pytest.mark.parametrize(("trusted", "shared"), [("", True), ("127.0.0.0/8", False), ("10.0.0.1", True)])
def test_forwarded_addresses_count_only_behind_a_trusted_proxy(
    start: Start, trusted: str, shared: bool
) -> None:
    with start(api_keys=BOTH, trusted_proxies=trusted) as gateway:
        for _ in range(ALLOWED):
            guess = bearer("wrong") | {"X-Forwarded-For": "203.0.113.7"}
            assert gateway.client.get("/info", headers=guess).status_code == 401
        other = bearer("wrong") | {"X-Forwarded-For": "203.0.113.7, 203.0.113.8"}
        assert gateway.client.get("/info", headers=other).status_code == (429 if shared else 401)


def test_failures_are_forgotten_after_a_minute_and_of_all_but_the_latest_addresses() -> None:
    now = [0.0]
    failed = FailedKeys(clock=lambda: now[0])
    for second in range(ALLOWED):
        now[0] = second
        assert failed.wait_s("192.0.2.1") == 0
        failed.add("192.0.2.1")
    assert failed.wait_s("192.0.2.1") == WINDOW_S - (ALLOWED - 1)
    assert failed.wait_s("::ffff:192.0.2.1") > 0
    assert failed.wait_s("192.0.2.2") == 0
    now[0] = WINDOW_S
    assert failed.wait_s("192.0.2.1") == 0
    for host in range(ALLOWED):
        failed.add(f"2001:db8::{host}")
    assert failed.wait_s("2001:db8::ffff:0:1%eth0") > 0
    assert failed.wait_s("2001:db8:0:1::1") == 0
    for number in range(MAX_ADDRESSES):
        failed.add(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert failed.wait_s("2001:db8::1") == 0


def test_every_refusal_at_the_gate_has_a_class_of_its_own() -> None:
    codes = {kind.code: kind.status for kind in ServiceError.__subclasses__()}
    assert codes["unauthorized"] == 401
    assert {codes[one] for one in ("too_many_failed_keys", "rate_limited", "quota_exceeded")} == {429}


def test_the_answer_to_a_wrong_key_does_not_wait_for_the_body(keyed: Gateway) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 65536

    try:
        reply = keyed.client.post("/tokenize", content=endless(), headers={"Content-Type": "image/png"})
    except httpx.WriteError:
        return
    assert reply.status_code == 401
