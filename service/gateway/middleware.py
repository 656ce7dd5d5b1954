"""What surrounds every request: id, security headers, metrics, a log line, and an answer whatever happens."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import MutableMapping
from typing import Any

from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.gateway.responses import error_body
from service.gateway.spans import Spans
from service.logs import log_fields
from service.telemetry import GatewayMetrics

log = logging.getLogger(__name__)

SECURITY_HEADERS = (
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data: blob:; style-src 'self'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)
_CALLERS_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CLIENT_LEFT = 499
_PROBES = frozenset({"/livez", "/readyz", "/metrics"})
_LINGER_S = 1.0
_LINGER_PAUSE_S = 0.005


def new_request_id() -> str:
    """An id for a request that brought none, or none that is safe to repeat."""
    return uuid.uuid4().hex


class Envelope:
    """Pure ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics, spans: Spans) -> None:
        self._app = app
        self._metrics = metrics
        self._spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send)
        with log_fields(request_id=exchange.id) as fields, self._spans.request(scope["headers"], fields):
            await self._serve(scope, exchange, fields)

    async def _serve(self, scope: Scope, exchange: "Exchange", fields: dict[str, object]) -> None:
        fields["method"] = scope["method"]
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        began = time.perf_counter()
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:
            # The server ends its last requests when the time to drain is over.
            await exchange.fail(503, "unavailable", "the service is shutting down", retry_after=True)
        except Exception:
            log.exception("request %s failed", exchange.id)
            await exchange.fail(500, "internal", "an internal error; the log has more under this request id")
        finally:
            self._note(scope, exchange, fields, time.perf_counter() - began)

    def _note(self, scope: Scope, exchange: "Exchange", fields: dict[str, object], seconds: float) -> None:
        code = exchange.status if exchange.complete else _CLIENT_LEFT
        route, method = _route(scope), str(fields["method"])
        fields.update(route=route, status=code, duration_ms=round(1000 * seconds, 3))
        self._metrics.http(route, method, code, seconds)
        # Probes come every few seconds and say nothing that the metrics do not.
        level = logging.DEBUG if route in _PROBES else logging.INFO
        if log.isEnabledFor(level):
            path = scope.get("raw_path", b"").decode("latin-1")
            log.log(level, "%s %s %d %.1f ms %s", method, path[:200], code, 1000 * seconds, exchange.id)


class Exchange:
    """One request and its answer on their way through the envelope."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _headers(scope, b"x-request-id", b"content-length", b"transfer-encoding")
        wanted = headers.get(b"x-request-id", b"").decode("latin-1")
        self.id = wanted if _CALLERS_ID.fullmatch(wanted) else new_request_id()
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state["request_id"] = self.id
        self.status = 0
        self.complete = False
        self._send = send
        self._receive = receive
        self._unread = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        self._head_only = scope["method"] == "HEAD"

    async def receive(self) -> Message:
        """The next message of the client."""
        message = await self._receive()
        if self._unread and (message["type"] != "http.request" or not message.get("more_body", False)):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        """The next message of the application, with our headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self.id.encode()), *SECURITY_HEADERS]
            if self._unread:
                headers.append((b"connection", b"close"))
            await self._send({**message, "headers": headers})
            if not self._head_only:
                return
            # The answer ends here, that of a stream too.
            message = {"type": "http.response.body"}
        elif self._head_only:
            return
        last = not message.get("more_body", False)
        if last and self._unread:
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body"}
        await self._send(message)
        self.complete = self.complete or last

    async def _linger(self) -> None:
        """Take in more of an unwanted body: closing at once would reset the connection, answer and all."""
        try:
            async with asyncio.timeout(_LINGER_S):
                while self._unread:
                    await self.receive()
                    # A flood is taken in no faster than some MB a second.
                    await asyncio.sleep(_LINGER_PAUSE_S)
        except TimeoutError:
            pass

    async def fail(self, status: int, code: str, message: str, *, retry_after: bool = False) -> None:
        """Answer with an error, unless an answer has begun."""
        if self.status:
            return
        body = to_json(error_body(code, message, self.id))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if retry_after:
            headers.append((b"retry-after", b"2"))
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def _headers(scope: Scope, *names: bytes) -> dict[bytes, bytes]:
    return {name: value for name, value in scope["headers"] if name in names}


def _route(scope: Scope) -> str:
    """The template of the route that was taken, `unmatched` without one: a bounded set."""
    path = getattr(scope.get("route"), "path", None)
    if path is None and scope.get("path", "").startswith("/static/"):
        return "/static"
    return str(path) if path is not None else "unmatched"
