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

from service.errors import BodyTimeout, InvalidRequest, PayloadTooLarge, UnsupportedMedia
from service.gateway.schemas import parse

T = TypeVar("T")

# Each value of a JSON body can cost an object and an error message; no honest request has so many.
_MAX_JSON_VALUES = 200_000


@dataclass(frozen=True)
class BodyLimits:
    """Bytes of one body and seconds until its last byte."""

    max_bytes: int
    timeout_s: float


def media_type(request: Request) -> str:
    """The Content-Type without its parameters, in lower case; empty when there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(request: Request, kind: TypeAdapter[T], limits: BodyLimits) -> T:
    """The JSON body as `kind`. Raises UnsupportedMedia, PayloadTooLarge, BodyTimeout, InvalidRequest."""
    if not is_json(got := media_type(request)):
        raise UnsupportedMedia(f"the content type is {got or 'missing'}; application/json is needed")
    body = await read_body(request, limits)
    values = body.count(b",")
    if values > _MAX_JSON_VALUES:
        raise InvalidRequest(
            f"the body has about {values:,} values; at most {_MAX_JSON_VALUES:,} are allowed"
        )
    return parse(kind, body)


def is_json(media: str) -> bool:
    """Whether a media type is JSON."""
    return media == "application/json" or (media.startswith("application/") and media.endswith("+json"))


async def read_body(request: Request, limits: BodyLimits) -> bytes:
    """The whole body. Raises PayloadTooLarge, BodyTimeout, ClientDisconnect."""
    return b"".join([chunk async for chunk in _stream(request, limits)])


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


async def _stream(request: Request, limits: BodyLimits) -> AsyncGenerator[bytes, None]:
    declared = request.headers.get("content-length", "")
    # A longer number is past every limit, and int() refuses very long ones.
    check_size(int(declared[:18]) if declared.isdecimal() else 0, limits.max_bytes)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limits.timeout_s
    received = 0
    more = True
    while more:
        try:
            async with asyncio.timeout_at(deadline):
                message = await request.receive()
        except TimeoutError:
            raise BodyTimeout(
                f"{received:,} bytes of the body came in {limits.timeout_s:g} s; all of it is needed by then"
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        received += len(chunk)
        check_size(received, limits.max_bytes)
        more = message.get("more_body", False)
        yield chunk
