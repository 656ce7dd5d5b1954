"""Bodies that bring pictures: raw bytes, multipart files, or JSON with base64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import Request

from service.errors import UnsupportedMedia
from service.gateway import openapi
from service.gateway.bodies import is_json, media_type, read_body, read_files, read_json
from service.gateway.desk import Desk
from service.gateway.schemas import DEFAULT_DEADLINE_MS, PICTURE

_RAW = ("image/*", "application/octet-stream")


@dataclass(frozen=True)
class Upload:
    """Picture files as they came, with the model that a JSON body names and its deadline."""

    files: list[bytes]
    model: str | None = None
    deadline_ms: int = DEFAULT_DEADLINE_MS


async def read_upload(request: Request, desk: Desk) -> Upload:
    """The pictures of a request. Raises UnsupportedMedia, PayloadTooLarge, BodyTimeout, InvalidRequest."""
    got = media_type(request)
    if is_json(got):
        body = await read_json(request, PICTURE, desk.any_body)
        return Upload([body.upload()], body.model, body.deadline_ms)
    if got == "multipart/form-data":
        max_file_bytes = desk.upload_body.max_bytes
        return Upload(await read_files(request, desk.any_body, desk.max_images, max_file_bytes))
    if got.startswith("image/") or got == "application/octet-stream":
        return Upload([await read_body(request, desk.upload_body)])
    allowed = ", ".join((*_RAW, "multipart/form-data", "application/json"))
    raise UnsupportedMedia(f"the content type is {got[:80] or 'missing'}; allowed are {allowed}")


def _described() -> dict[str, Any]:
    described = openapi.body(PICTURE, *_RAW)
    described["requestBody"]["content"] |= openapi.multipart()
    return described


PICTURES_BODY = _described()
