"""Request bodies, read under a byte limit and a time limit: JSON, raw bytes, multipart files."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from pydantic import TypeAdapter
from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from service.errors import BodyTimeout, InvalidRequest, PayloadTooLarge, Unavailable, UnsupportedMedia
from service.gateway.schemas import parse

T = TypeVar("T")

# Each value of a JSON body can cost an object and each field an error message; no honest request has so many.
_MAX_JSON_VALUES = 200_000
_MAX_JSON_FIELDS = 20_000
_MAX_LENGTH_DIGITS = 20  # of 64 bits, more than which no parser lets through
_ROOM_RETRY_S = 2.0


class BodyRoom:
    """Memory for all bodies that are being received, of which `taken` bytes are in use.

    Many stalled bodies must not fill the machine.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.taken = 0

    def take(self, count: int) -> None:
        """Make room for `count` more bytes. Raises Unavailable."""
        if self.taken + count > self._max_bytes:
            raise Unavailable(
                f"bodies of {self.taken:,} bytes are being received; "
                f"at most {self._max_bytes:,} are allowed at a time",
                retry_after_s=_ROOM_RETRY_S,
            )
        self.taken += count

    def give(self, count: int) -> None:
        """Give `count` bytes back."""
        self.taken -= count


@dataclass(frozen=True)
class BodyLimits:
    """Bytes of one body, seconds until its last byte, and the room that it shares with others."""

    max_bytes: int
    timeout_s: float
    room: BodyRoom


def media_type(request: Request) -> str:
    """The Content-Type without its parameters, in lower case; empty when there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(request: Request, kind: TypeAdapter[T], limits: BodyLimits) -> T:
    """The JSON body as `kind`. Raises UnsupportedMedia, PayloadTooLarge, BodyTimeout, InvalidRequest."""
    if not is_json(got := media_type(request)):
        raise UnsupportedMedia(f"the content type is {got[:80] or 'missing'}; application/json is needed")
    body = await read_body(request, limits)
    for mark, what, most in ((b",", "values", _MAX_JSON_VALUES), (b":", "fields", _MAX_JSON_FIELDS)):
        if (got_marks := body.count(mark)) > most:
            raise InvalidRequest(f"the body has about {got_marks:,} {what}; at most {most:,} are allowed")
    return parse(kind, body)


def is_json(media: str) -> bool:
    """Whether a media type is JSON."""
    return media == "application/json" or (media.startswith("application/") and media.endswith("+json"))


async def read_body(request: Request, limits: BodyLimits) -> bytes:
    """The whole body.

    Raises UnsupportedMedia (compressed), PayloadTooLarge, BodyTimeout, Unavailable (no room now),
    ClientDisconnect.
    """
    _check_encoding(request)
    _check_declared(request, limits)
    deadline = asyncio.get_running_loop().time() + limits.timeout_s
    body, more = bytearray(), True
    try:
        while more:
            chunk, more = await _chunk(request, deadline)
            check_size(len(body) + len(chunk), limits.max_bytes)
            limits.room.take(len(chunk))
            body += chunk
    except TimeoutError:
        raise BodyTimeout(
            f"{len(body):,} bytes of the body came in {limits.timeout_s:g} s; all of it is needed by then"
        ) from None
    finally:
        limits.room.give(len(body))
    return bytes(body)


async def read_files(
    request: Request, limits: BodyLimits, max_files: int, max_file_bytes: int
) -> list[bytes]:
    """The parts called `file` of a multipart body, at least one. Raises as `read_body`, or InvalidRequest."""
    body = await read_body(request, limits)
    parser = MultiPartParser(request.headers, _once(body), max_files=max_files, max_fields=0)
    # All in memory, which the byte limit bounds: nothing is written to a disk, no thread is needed.
    parser.spool_max_size = limits.max_bytes
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError, KeyError, ValueError) as exc:
        raise InvalidRequest(
            f"the body is no multipart form with 1 to {max_files} parts named file ({exc})"
        ) from None
    try:
        files = _files(form)
    finally:
        await form.close()
    for data in files:
        check_size(len(data), max_file_bytes, "a file")
    return files


def _files(form: FormData) -> list[bytes]:
    parts = form.multi_items()
    if not parts or any(name != "file" or not isinstance(part, UploadFile) for name, part in parts):
        names = ", ".join(repr(name[:40]) for name, _ in parts[:5]) or "none"
        raise InvalidRequest(f"the parts of the form are {names}; allowed are files named 'file'")
    return [part.file.read() for _, part in parts if isinstance(part, UploadFile)]


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


def check_size(got: int, allowed: int, what: str = "the body") -> None:
    """Raise PayloadTooLarge when `got` bytes are more than `allowed`."""
    if got > allowed:
        raise PayloadTooLarge(f"{what} has {got:,} bytes or more; at most {allowed:,} are allowed")


def _check_encoding(request: Request) -> None:
    encoding = ", ".join(request.headers.getlist("content-encoding")).strip()
    if encoding.lower() not in ("", "identity"):
        raise UnsupportedMedia(f"the content encoding is {encoding[:80]}; the body has to come without one")


def _check_declared(request: Request, limits: BodyLimits) -> None:
    declared = request.headers.get("content-length", "")
    # Only zeros may stand before that, and int() refuses very long numbers.
    length = declared[-_MAX_LENGTH_DIGITS:]
    check_size(int(length) if declared.isdecimal() else 0, limits.max_bytes)


async def _chunk(request: Request, deadline: float) -> tuple[bytes, bool]:
    """The next part of the body, and whether there is more. Raises TimeoutError, ClientDisconnect."""
    async with asyncio.timeout_at(deadline):
        message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)
