"""The gate in front of all routes: with API keys set, whoever has none sees the open paths only."""

from __future__ import annotations

import math

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import RateLimited, ServiceError, TooManyFailedKeys, Unauthorized, Unavailable
from service.gateway.caller import PUBLIC, Caller
from service.gateway.failed_keys import ALLOWED, FailedKeys
from service.gateway.key_ring import KeyRing
from service.gateway.responses import error_response
from service.jobs.allowance import Allowance, Allowances, Balance
from service.logs import note
from service.telemetry import GatewayMetrics

OPEN_PATHS = frozenset({"/", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json"})
_ASSETS = "/static/"


def is_open(path: str) -> bool:
    """Whether a path may be asked for without a key."""
    return path in OPEN_PATHS or path.startswith(_ASSETS)


class Gate:
    """Pure ASGI middleware: finds the caller and charges one request, before anything of the body is read."""

    def __init__(self, app: ASGIApp, keys: KeyRing, allowances: Allowances, metrics: GatewayMetrics) -> None:
        self._app = app
        self._keys = keys
        self._allowances = allowances
        self._metrics = metrics
        self._failed = FailedKeys()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif not self._keys.required or is_open(scope["path"]):
            scope["state"]["caller"] = PUBLIC
            await self._app(scope, receive, send)
        else:
            await self._admit(scope, receive, send)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = PUBLIC
        try:
            caller = self._caller(scope)
            note(tenant=caller.tenant)
            balance = await self._allowances.charge_request(caller.tenant, caller.allowance)
        except ServiceError as exc:
            if exc.status in (429, 503):
                self._metrics.shed(exc)
            answer = error_response(exc, scope["state"]["request_id"])
            if isinstance(exc, RateLimited):
                answer.headers.update(rate_headers(caller.allowance, _spent(caller.allowance, exc)))
            await answer(scope, receive, send)
            return
        scope["state"]["caller"] = caller
        if balance is None:
            await self._app(scope, receive, send)
        else:
            await _Charged(self._allowances, caller, balance, send).run(self._app, scope, receive)

    def _caller(self, scope: Scope) -> Caller:
        """Raises Unauthorized, TooManyFailedKeys. A right key is let in from wherever it comes.

        Behind one address there may be many people, and no number of guesses finds a key.
        """
        headers = Headers(scope=scope)
        presented = presented_keys(headers)
        if not presented:
            raise Unauthorized("an API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY")
        if (caller := key_holder(self._keys, headers)) is not None:
            return caller
        address = scope["client"][0] if scope.get("client") else ""
        self._metrics.key_failed()
        if wait_s := self._failed.wait_s(address):
            raise TooManyFailedKeys(
                f"more than {ALLOWED} wrong API keys a minute came from this address", retry_after_s=wait_s
            )
        self._failed.add(address)
        if len(presented) > 1:
            raise Unauthorized("the request has several API keys that differ; one is needed")
        raise Unauthorized("the API key is not known")


class _Charged:
    """A request that was charged: its answer says what is left, and 503 gives the charge back."""

    def __init__(self, allowances: Allowances, caller: Caller, balance: Balance, send: Send) -> None:
        self._allowances = allowances
        self._caller = caller
        self._balance = balance
        self._send = send

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive) -> None:
        await app(scope, receive, self._settle)

    async def _settle(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] == Unavailable.status:
                # Before the caller knows, who may come again at once.
                await self._allowances.refund(self._caller.tenant, self._caller.allowance, requests=1)
            MutableHeaders(scope=message).update(rate_headers(self._caller.allowance, self._balance))
        await self._send(message)


def rate_headers(allowance: Allowance, balance: Balance) -> dict[str, str]:
    """What an answer to a caller with a rate says about it."""
    return {
        "RateLimit-Limit": str(allowance.at_once),
        "RateLimit-Remaining": str(balance.remaining),
        "RateLimit-Reset": str(math.ceil(balance.full_in_s)),
    }


def _spent(allowance: Allowance, error: RateLimited) -> Balance:
    """Nothing is left: the next request is free when the error says, the others one after another."""
    others_s = (allowance.at_once - 1) * allowance.interval_ms / 1000
    return Balance(0, (error.retry_after_s or 0.0) + others_s)


def key_holder(keys: KeyRing, headers: Headers) -> Caller | None:
    """Who has the one key of a request; None without a key, with a wrong one and with several."""
    presented = presented_keys(headers)
    return keys.find(presented[0]) if len(presented) == 1 else None


def presented_keys(headers: Headers) -> list[str]:
    """The different API keys of a request; other schemes of Authorization may be a proxy's."""
    found = headers.getlist("x-api-key")
    for value in headers.getlist("authorization"):
        scheme, _, rest = value.strip().partition(" ")
        if scheme.lower() == "bearer":
            found.append(rest)
    return list(dict.fromkeys(key.strip() for key in found if key.strip()))
