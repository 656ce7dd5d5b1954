"""Asks the gateway or the worker of this machine whether it is ready: the health check of a container."""

from __future__ import annotations

import http.client
import json
from typing import Any

from models.errors import ConfigError
from service.errors import Unavailable
from service.settings import Settings

TIMEOUT_S = 3.0
_MOST_BYTES = 1 << 16
_HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
# A gateway without a worker, as while one warms up, does what it can: nobody is to take it away for that.
_PATHS = {"gateway": "/readyz?workers=0", "worker": "/readyz"}
# Only the part itself says it when it is ready.
_FIELDS = {"gateway": "models", "worker": "refused"}


def check_ready(part: str, settings: Settings) -> None:
    """Return if the `part`, gateway or worker, that runs here with these settings is ready for jobs.

    A gateway is, as soon as Redis answers. Raises Unavailable with its reason in one line; ConfigError for a
    worker without a port.
    """
    port = settings.port if part == "gateway" else settings.metrics_port
    if port is None:
        raise ConfigError("a worker can be asked only where MASKBIT_METRICS_PORT is set")
    host = _HERE.get(settings.host, settings.host)
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", _PATHS[part])
        reply = connection.getresponse()
        status, body = reply.status, reply.read(_MOST_BYTES)
    except (OSError, http.client.HTTPException) as exc:
        raise Unavailable(f"the {part} does not answer on {host} port {port}: {exc}") from exc
    finally:
        connection.close()
    if status != http.client.OK:
        raise Unavailable(f"the {part} is not ready: {_reason(part, body) or status}")
    if _FIELDS[part] not in _answer(body):
        raise Unavailable(f"what answers on {host} port {port} is no {part}")


def _answer(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _reason(part: str, body: bytes) -> str:
    """What the part's answer gives as the reason; nothing if it is another's."""
    try:
        answer = _answer(body)
        return str(answer["error"]["message"] if part == "gateway" else answer["reason"])
    except (LookupError, TypeError):
        return ""
