"""Log lines: text for people, JSON for machines; nothing of a key in either."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from models.bundle import Bundle
from service.logs import JsonFormatter, TextFormatter, log_fields, note, note_job, of_job
from tests.gateway_harness import gateway_running

KEY = "maskbit_a-key-that-must-not-be-logged"
NASTY = 'line\r\nbreak \x1b[31m "quoted" \x00\x7f\x85\u2028 Ω'


@contextmanager
def captured(formatter: logging.Formatter, level: int = logging.DEBUG) -> Iterator[io.StringIO]:
    """What service and server log, not their client beside them."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    before = root.level
    handler.addFilter(lambda record: not record.name.startswith(("httpx", "httpcore")))
    # Before pytest's own, which would leave its form of a stack trace in the record.
    root.handlers.insert(0, handler)
    root.setLevel(level)
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


def test_json_is_one_line_of_ascii_whatever_is_logged() -> None:
    with captured(JsonFormatter()) as stream:
        try:
            raise ValueError(NASTY)
        except ValueError:
            logging.getLogger("test").exception("it says %s", NASTY, extra=of_job("a"))
    text = stream.getvalue()
    assert text.isascii()
    assert text.count("\n") == 1
    assert not set(text[:-1]) & set(map(chr, (*range(32), 127)))
    line = json.loads(text)
    assert line["message"] == f"it says {NASTY}"
    assert (line["level"], line["logger"], line["jobs"]) == ("error", "test", ["a"])
    assert line["exception"].startswith("Traceback")
    assert NASTY in line["exception"]


def test_text_shows_control_characters_and_keeps_the_lines_of_a_trace() -> None:
    with captured(TextFormatter("%(levelname)s %(name)s: %(message)s")) as stream:
        try:
            raise ValueError("bad \x1b[31m")
        except ValueError:
            logging.getLogger("test").exception("it says %s", NASTY)
    first, *trace = stream.getvalue().splitlines()
    shown = r"line\x0d\x0abreak \x1b[31m" + ' "quoted" ' + r"\x00\x7f\x85\u2028 Ω"
    assert first == f"ERROR test: it says {shown}"
    assert len(trace) > 2
    assert "\x1b" not in "".join(trace)


def test_fields_hold_inside_and_in_tasks_that_were_started_inside() -> None:
    log = logging.getLogger("test")

    async def task() -> None:
        await asyncio.sleep(0)
        log.info("from the task")

    async def request(name: str) -> None:
        with log_fields(request_id=name):
            child = asyncio.create_task(task())
            note(tenant=f"of {name}")
            note_job("a")
            note_job("b")
            log.info("from the request")
            await child

    async def two() -> None:
        await asyncio.gather(request("one"), request("two"))

    with captured(JsonFormatter()) as stream:
        asyncio.run(two())
        note(lost="without a place")
        note_job("lost")
        log.info("outside")
    lines = [line for line in map(json.loads, stream.getvalue().splitlines()) if line["logger"] == "test"]
    assert len(lines) == 5
    for line in lines[:4]:
        assert line["tenant"] == f"of {line['request_id']}"
        assert line["jobs"] == ["a", "b"]
    assert set(lines[4]) == {"ts", "level", "logger", "message"}


def test_a_field_never_hides_what_every_line_has() -> None:
    with captured(JsonFormatter()) as stream, log_fields(level="none", message="none", ts=0):
        logging.getLogger("test").warning("here")
    line = json.loads(stream.getvalue())
    assert (line["level"], line["message"]) == ("warning", "here")


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter("%(levelname)s %(message)s")])
def test_no_key_reaches_a_log(plain_bundle: Bundle, gateway_redis: str, formatter: logging.Formatter) -> None:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    wrong = KEY[::-1]
    with (
        captured(formatter) as stream,
        gateway_running(plain_bundle, gateway_redis, api_keys=f"shop:{digest}") as gateway,
    ):
        get = gateway.client.get
        assert get("/info", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        assert get("/info", headers={"X-API-Key": wrong}).status_code == 401
        assert get("/info", headers={"X-API-Key": KEY, "Authorization": f"Bearer {wrong}"}).status_code == 401
        assert get(f"/info?key={KEY}", headers={"Authorization": wrong}).status_code == 401
        assert gateway.client.post("/generate", json={}, headers={"X-API-Key": KEY}).status_code in (422, 503)
    text = stream.getvalue()
    assert "GET /info 200" in text
    assert "GET /info 401" in text
    for secret in (KEY, wrong, digest):
        assert secret not in text


def test_a_line_of_the_gateway_says_who_asked_for_what(plain_bundle: Bundle, gateway_redis: str) -> None:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    with (
        captured(JsonFormatter(), logging.INFO) as stream,
        gateway_running(plain_bundle, gateway_redis, api_keys=f"shop:{digest}") as gateway,
    ):
        headers = {"X-API-Key": KEY, "X-Request-ID": "mine"}
        assert gateway.client.get("/classes?search=a", headers=headers).status_code == 200
        gateway.client.get("/livez")
        gateway.client.get("/nothing%0a%1b", headers={"X-Request-ID": "x\ty"})
    lines: list[dict[str, Any]] = [json.loads(line) for line in stream.getvalue().splitlines()]
    seen = [line for line in lines if line["logger"] == "service.gateway.middleware"]
    assert len(seen) == 2
    first, second = seen
    wanted = {"request_id": "mine", "tenant": "shop", "method": "GET", "route": "/classes", "status": 200}
    assert {name: first[name] for name in wanted} == wanted
    assert first["duration_ms"] > 0
    assert (second["route"], second["status"], len(second["request_id"])) == ("unmatched", 401, 32)
    assert "tenant" not in second


def maskbit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "maskbit_cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin", **environment},
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (("gateway", "--log-format", "xml"), {}, "setting log_format is 'xml'"),
        (("worker",), {"MASKBIT_LOG_LEVEL": "loud"}, "setting log_level is 'loud'"),
        (("gateway",), {"MASKBIT_TRUSTED_PROXIES": "10.0.0.0/8,me"}, "setting trusted_proxies"),
        (("gateway",), {"MASKBIT_RESULT_TTL_S": "inf"}, "setting result_ttl_s is 'inf'"),
        (("gateway", "--redis-url", "http://me:secret@host/0"), {}, "redis_url: it must begin"),
        (("worker",), {"MASKBIT_TRITON_URL": "ftp://me:a/secret@host"}, "triton_url is 'ftp://…@host'"),
        (("gateway", "--redis-url", "unix:///x"), {"MASKBIT_API_KEYS": "secret"}, "NAME:SHA256"),
        (("gateway", "--redis-url", "unix:///x"), {"MASKBIT_API_KEYS_FILE": "/no"}, "/no cannot be read"),
    ],
)
def test_a_wrong_setting_gets_one_line_without_secrets(
    arguments: tuple[str, ...], environment: dict[str, str], words: str
) -> None:
    done = maskbit(*arguments, **environment)
    assert done.returncode == 2
    assert words in done.stderr
    assert "secret" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


_UNCAUGHT = """
import logging, warnings
from service.logs import configure
configure("json", "warning")
logging.getLogger("quiet").info("left out")
warnings.warn("a warning")
raise ValueError("the end")
"""


def test_warnings_and_an_uncaught_error_are_json_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _UNCAUGHT], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    warning, error = (json.loads(line) for line in done.stderr.splitlines())
    assert "a warning" in warning["message"]
    assert (error["level"], error["message"]) == ("critical", "the process ends: the end")
    assert "ValueError: the end" in error["exception"]
