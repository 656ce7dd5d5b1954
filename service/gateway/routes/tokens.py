"""`POST /tokenize` and `POST /detokenize`."""

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request
from numpy.typing import NDArray
from starlette.responses import Response

from models.bits import Indices
from service.errors import InvalidRequest, UnsupportedMedia
from service.gateway import npy, openapi
from service.gateway.answers import PicturesAnswer, TokensAnswer, TokensListAnswer
from service.gateway.bodies import check_size, is_json, media_type, read_body, read_files, read_json
from service.gateway.caller import CallerDep
from service.gateway.desk import Desk, OpenDesk, repeat_of
from service.gateway.rendering import (
    grids_of,
    picture_response,
    pictures_answer,
    pictures_of,
    tokens_answer,
    wants_picture,
)
from service.gateway.schemas import DETOKENIZE, TOKENIZE, DetokenizeQuery, TokenizeQuery, check_grid
from service.gateway.served_model import ServedModel
from service.gateway.uploads import Fit
from service.jobs.payloads import DetokenizeJob, TokenizeJob

router = APIRouter(tags=["tokens"])

_DEADLINE_MS = 60_000
_UPLOADS = ("image/*", "application/octet-stream")

_TOKENS = openapi.answer(
    200,
    TokensAnswer | TokensListAnswer,
    "the tokens; a list under `results` when there are several pictures",
    openapi.media(npy.MEDIA_TYPE),
)
_PICTURES = openapi.answer(
    200,
    PicturesAnswer,
    "the picture; with Accept: image/*, the picture itself",
    openapi.media("image/png", "image/jpeg", "image/webp"),
)
_TOKENIZE_BODY = openapi.body(TOKENIZE, *_UPLOADS)
_TOKENIZE_BODY["requestBody"]["content"] |= openapi.multipart()


@router.post("/tokenize", responses=_TOKENS | openapi.post_errors(), openapi_extra=_TOKENIZE_BODY)
async def tokenize(
    request: Request, desk: OpenDesk, caller: CallerDep, query: Annotated[TokenizeQuery, Query()]
) -> Response:
    """Turn pictures into bit tokens: a raw image body, multipart files named `file`, or JSON."""
    files, name, deadline_ms = await _uploads(request, desk)
    model = await desk.model(name or query.model)
    if query.encoding == "npy" and len(files) > 1:
        raise InvalidRequest(
            f"encoding is npy with {len(files)} pictures; a NumPy file holds the tokens of one"
        )
    images = await fitted(desk, model, files, query.fit)
    repeat = repeat_of(request, images.tobytes)
    job = TokenizeJob.of(images)
    ticket = await desk.accept(
        model, caller, "tokenize", job, rows=len(images), deadline_ms=deadline_ms, repeat=repeat
    )
    grids = grids_of(await desk.outcome(ticket, request))
    if query.encoding == "npy":
        return Response(npy.write_npy(grids[0]), media_type=npy.MEDIA_TYPE)
    return tokens_answer(grids, query.encoding, model.offer).response()


async def _uploads(request: Request, desk: Desk) -> tuple[list[bytes], str | None, int]:
    """The picture files of a request, the model that its body names, and its deadline in ms."""
    got = media_type(request)
    if is_json(got):
        body = await read_json(request, TOKENIZE, desk.any_body)
        upload = body.upload()
        check_size(len(upload), desk.upload_body.max_bytes, "the picture")
        return [upload], body.model, body.deadline_ms
    if got == "multipart/form-data":
        max_file_bytes = desk.upload_body.max_bytes
        return await read_files(request, desk.any_body, desk.max_images, max_file_bytes), None, _DEADLINE_MS
    if got.startswith("image/") or got == "application/octet-stream":
        return [await read_body(request, desk.upload_body)], None, _DEADLINE_MS
    allowed = ", ".join((*_UPLOADS, "multipart/form-data", "application/json"))
    raise UnsupportedMedia(f"the content type is {got[:80] or 'missing'}; allowed are {allowed}")


async def fitted(desk: Desk, model: ServedModel, files: list[bytes], fit: Fit) -> NDArray[np.uint8]:
    """The pictures as the model reads them, u8 (count, size, size, 3), decoded in another process."""
    size = model.offer.image_size
    return np.stack([await desk.decoders.decode(data, size=size, fit=fit) for data in files])


@router.post(
    "/detokenize",
    responses=_PICTURES | openapi.post_errors(),
    openapi_extra=openapi.body(DETOKENIZE, npy.MEDIA_TYPE),
)
async def detokenize(
    request: Request, desk: OpenDesk, caller: CallerDep, query: Annotated[DetokenizeQuery, Query()]
) -> Response:
    """Turn one token grid back into a picture."""
    if media_type(request) == npy.MEDIA_TYPE:
        data = await read_body(request, desk.small_body)
        model = await desk.model(query.model)
        grid = check_grid(npy.read_npy(data, model.offer.grid), model.offer)
        file_format, deadline_ms = query.format, _DEADLINE_MS
    else:
        body = await read_json(request, DETOKENIZE, desk.small_body)
        model = await desk.model(body.model or query.model)
        grid = body.grid(model.offer)
        file_format, deadline_ms = body.format or query.format, body.deadline_ms
    repeat = repeat_of(request, lambda: grid.tobytes() + file_format.encode())
    job = detokenize_job(grid, file_format)
    ticket = await desk.accept(
        model, caller, "detokenize", job, rows=1, deadline_ms=deadline_ms, repeat=repeat
    )
    view = await desk.outcome(ticket, request)
    pictures = pictures_of(view)
    if wants_picture(request.headers.get("accept", ""), pictures.format):
        return picture_response(pictures, view.id, model.offer)
    return pictures_answer(view, pictures, model.offer).response()


def detokenize_job(grid: Indices, file_format: str) -> DetokenizeJob:
    """The job that turns one grid i64 (h, w) into a picture of `file_format`."""
    return DetokenizeJob(1, grid.shape[0], grid.astype("<i4").tobytes(), file_format)
