"""`POST /reconstruct`."""

import asyncio
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.errors import InvalidRequest
from service.gateway import openapi
from service.gateway.answers import TokensPictureAnswer
from service.gateway.caller import CallerDep
from service.gateway.desk import OpenDesk
from service.gateway.errand import Errand
from service.gateway.picture_bodies import PICTURES_BODY, read_upload
from service.gateway.queries import ReconstructQuery
from service.gateway.reconstruction import compared
from service.gateway.rendering import (
    image_answer,
    made_by,
    picture_response,
    pictures_of,
    tokens_picture_answer,
    wants_picture,
)
from service.gateway.repeat import repeat_of
from service.gateway.wish import Wish
from service.jobs.payloads import DetokenizeJob

router = APIRouter(tags=["tokens"])

_ANSWER = openapi.answer(
    200,
    TokensPictureAnswer,
    "the picture as its tokens hold it; with Accept: image/*, the picture itself, and X-PSNR-dB",
    openapi.PICTURES,
)


@router.post("/reconstruct", responses=_ANSWER | openapi.post_errors(), openapi_extra=PICTURES_BODY)
async def reconstruct(
    request: Request, desk: OpenDesk, caller: CallerDep, query: Annotated[ReconstructQuery, Query()]
) -> Response:
    """Turn a picture into tokens and back, and tell the PSNR against the fitted picture.

    The body is that of `/tokenize`, with one picture. A reconstruction without any error has the PSNR null,
    and no X-PSNR-dB.
    """
    upload = await read_upload(request, desk)
    if len(upload.files) > 1:
        raise InvalidRequest(f"{len(upload.files)} pictures are given; one can be reconstructed at a time")
    model = await desk.model(upload.model or query.model)
    errand = Errand(desk, request, model, caller, upload.deadline_ms)
    pixels = await errand.fitted([(upload.files[0], query.fit)])
    repeat = repeat_of(request, pixels.tobytes)
    [grid] = await errand.tokenize(pixels)
    ticket = await errand.accept(Wish(DetokenizeJob.one(grid, "npy"), repeat=repeat))
    view = await errand.outcome(ticket)
    decoded = pictures_of(view)
    # Encoding a picture takes milliseconds in which the event loop serves others.
    file, psnr = await asyncio.to_thread(compared, pixels[0], decoded.files[0], query.format)
    pictures = replace(decoded, files=(file,), format=query.format)
    if wants_picture(request.headers.get("accept", ""), query.format):
        response = picture_response(pictures, view.id, ticket.model.offer)
        if psnr is not None:
            response.headers["X-PSNR-dB"] = f"{psnr:.3f}"
        return response
    image = image_answer(pictures, 0, ticket.model.offer)
    image.psnr_db = psnr
    offer = ticket.model.offer
    bundle = made_by(pictures, offer)
    return tokens_picture_answer([image], grid, errand.usage, offer, bundle, view.id).response()
