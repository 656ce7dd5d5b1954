"""What a gateway is asked and answers, for tests that read it."""

import io
import json
from typing import Any

import httpx
import numpy as np
from PIL import Image
from redis import Redis

from tests.gateway_harness import Gateway, until

Event = tuple[str, str, Any]


def error_of(response: httpx.Response, status: int) -> dict[str, str]:
    """The error of a response, after checking that it has the one shape."""
    assert response.status_code == status, response.text
    error: dict[str, str] = response.json()["error"]
    assert set(error) == {"code", "message", "request_id"}
    assert error["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    return error


def png(value: int = 7, size: tuple[int, int] = (20, 30)) -> bytes:
    """A picture of one grey."""
    file = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(file, "PNG")
    return file.getvalue()


def colour(data: bytes) -> int:
    """The red of a picture's first pixel."""
    pixel = Image.open(io.BytesIO(data)).convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return int(pixel[0])


def events_of(text: str) -> list[Event]:
    """(id, event, data) of a whole stream; comments are left out."""
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            events.append((fields.get("id", ""), fields["event"], json.loads(fields["data"])))
    return events


def metric(gateway: Gateway, line: str) -> float:
    """What `/metrics` says behind `line`, 0.0 for nothing."""
    for one in gateway.client.get("/metrics").text.splitlines():
        if one.startswith(line + " "):
            return float(one.rsplit(" ", 1)[1])
    return 0.0


def open_jobs(gateway: Gateway, redis_url: str) -> int:
    """The jobs that are open in Redis."""
    with Redis.from_url(redis_url, protocol=2) as redis:
        return int(redis.zcard(gateway.keys.open))


def expected_tokens(value: int) -> list[list[int]]:
    """The fake worker's tokens, 8 x 8, of a picture with the mean colour `value`."""
    return ((np.arange(64).reshape(8, 8) + value) % 64).tolist()


def finished(gateway: Gateway, job_id: str, query: str = "") -> httpx.Response:
    """The answer to a look at a job that has ended."""

    def look() -> httpx.Response | None:
        response = gateway.client.get(f"/jobs/{job_id}{query}")
        return None if response.status_code == 202 else response

    response: httpx.Response = until(look)
    return response
