"""`POST /edit`."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.gateway import openapi
from service.gateway.answers import TokensPictureAnswer
from service.gateway.bodies import read_json
from service.gateway.caller import CallerDep
from service.gateway.desk import OpenDesk
from service.gateway.edits import EDIT
from service.gateway.errand import Errand
from service.gateway.queries import check_no_query
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
    "the tokens and their picture; with Accept: image/*, the picture itself",
    openapi.PICTURES,
)


@router.post("/edit", responses=_ANSWER | openapi.post_errors(), openapi_extra=openapi.body(EDIT))
async def edit(request: Request, desk: OpenDesk, caller: CallerDep) -> Response:
    """Flip, set, clear or mix bits of a picture's tokens, everywhere or in boxes, and look at the result."""
    check_no_query(request)
    body = await read_json(request, EDIT, desk.any_body)
    model = await desk.model(body.model)
    body.check(model.offer)
    repeat = repeat_of(request, lambda: body.model_dump_json(exclude_unset=True).encode())
    errand = Errand(desk, request, model, caller, body.deadline_ms)
    tokens_only = body.format == "tokens"
    grid = body.edited(await errand.grids(body.sources, charged=tokens_only), model.offer)
    if tokens_only:
        return tokens_picture_answer([], grid, errand.usage, model.offer, model.offer.bundle).response()
    ticket = await errand.accept(Wish(DetokenizeJob.one(grid, body.format), repeat=repeat))
    view = await errand.outcome(ticket)
    pictures = pictures_of(view)
    offer = ticket.model.offer
    if wants_picture(request.headers.get("accept", ""), pictures.format):
        return picture_response(pictures, view.id, offer)
    images, bundle = [image_answer(pictures, 0, offer)], made_by(pictures, offer)
    return tokens_picture_answer(images, grid, errand.usage, offer, bundle, view.id).response()
