"""The header Idempotency-Key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request

from service.errors import InvalidRequest

_MAX_KEY = 255


@dataclass(frozen=True)
class Repeat:
    """An idempotency key and the digest of the request that came with it."""

    key: str
    fingerprint: str


def repeat_of(request: Request, content: Callable[[], bytes]) -> Repeat | None:
    """The request's Idempotency-Key with a digest of path, query and `content()`; None without one.

    Raises InvalidRequest for a key that is empty, too long or not printable ASCII.
    """
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 1 <= len(key) <= _MAX_KEY or not key.isascii() or not key.isprintable():
        raise InvalidRequest(
            f"Idempotency-Key has {len(key)} characters; allowed are 1 to {_MAX_KEY} printable ASCII ones"
        )
    digest = hashlib.sha256(f"{request.url.path}?{request.url.query}\n".encode())
    digest.update(content())
    return Repeat(key, digest.hexdigest())
