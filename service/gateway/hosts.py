"""Which names in a request's Host the gateway answers to.

A page in a browser can make its own name resolve to 127.0.0.1 (DNS rebinding) and would then read what a
service on this machine answers. The browser still says that name in Host. An address in digits cannot be
rebound and is always right.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Misdirected
from service.gateway.refusals import shorten
from service.gateway.responses import error_response
from service.settings import Settings

_KEPT = 256  # answers about Host headers
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:]*)(?::\d{0,5})?")


class HostCheck:
    """Pure ASGI middleware inside the envelope: 421 for a name that is not ours."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._names = names_of(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] == "http" and self._names is not None:
            for host in Headers(scope=scope).getlist("host"):
                if not is_ours(host, self._names):
                    error = Misdirected(
                        f"the host is {shorten(host)}; allowed are addresses, localhost and the names in "
                        "MASKBIT_ALLOWED_HOSTS"
                    )
                    await error_response(error, scope["state"]["request_id"])(scope, receive, send)
                    return
        await self._app(scope, receive, send)


def names_of(settings: Settings) -> frozenset[str] | None:
    """The names that are allowed beside addresses and localhost; None is any.

    Any is what an unset `allowed_hosts` means too, unless the service listens on loopback.
    """
    if settings.allowed_hosts is None:
        return frozenset() if is_loopback(settings.host) else None
    names = frozenset(name.strip().lower() for name in settings.allowed_hosts.split(","))
    return None if "*" in names else names


@lru_cache(_KEPT)
def is_ours(host: str, names: frozenset[str]) -> bool:
    """Whether a Host header, with its port, is for an address, for localhost or for one of `names`."""
    match = _HOST.fullmatch(host.strip().lower())
    if match is None:
        return False
    name = match[1].strip("[]").rstrip(".")
    return name == "localhost" or name.endswith(".localhost") or name in names or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether `host`, an address or a name to listen on, is reached from this machine only."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
