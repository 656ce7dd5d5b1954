"""`POST /tokenize` and `POST /detokenize`."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from models import bits
from models.bits import Indices
from service.errors import InvalidRequest
from service.gateway import npy, openapi
from service.gateway.answers import PicturesAnswer, TokensAnswer, TokensListAnswer
from service.gateway.bodies import media_type, read_body, read_json
from service.gateway.caller import CallerDep
from service.gateway.desk import OpenDesk
from service.gateway.errand import Errand
from service.gateway.grids import check_grid
from service.gateway.offer import Offer
from service.gateway.picture_bodies import PICTURES_BODY, read_upload
from service.gateway.queries import DetokenizeQuery, TokenizeQuery
from service.gateway.rendering import pictures_response, tokens_answer, tokens_of
from service.gateway.repeat import repeat_of
from service.gateway.schemas import DEFAULT_DEADLINE_MS, DETOKENIZE
from service.gateway.wish import Wish
from service.jobs.payloads import DetokenizeJob, TokenizeJob

router = APIRouter(tags=["tokens"])

_PACKED = "application/octet-stream"

_TOKENS = openapi.answer(
    200,
    TokensAnswer | TokensListAnswer,
    "the tokens; a list under `results` when there are several pictures",
    openapi.media(npy.MEDIA_TYPE),
)
_PICTURE = openapi.answer(
    200,
    PicturesAnswer,
    "the picture; with Accept: image/*, the picture itself",
    openapi.PICTURES,
)


@router.post("/tokenize", responses=_TOKENS | openapi.post_errors(), openapi_extra=PICTURES_BODY)
async def tokenize(
    request: Request, desk: OpenDesk, caller: CallerDep, query: Annotated[TokenizeQuery, Query()]
) -> Response:
    """Turn pictures into bit tokens: a raw image body, multipart files named `file`, or JSON."""
    upload = await read_upload(request, desk)
    model = await desk.model(upload.model or query.model)
    if query.encoding == "npy" and len(upload.files) > 1:
        raise InvalidRequest(
            f"encoding is npy with {len(upload.files)} pictures; a NumPy file holds the tokens of one"
        )
    errand = Errand(desk, request, model, caller, upload.deadline_ms)
    images = await errand.fitted([(data, query.fit) for data in upload.files])
    repeat = repeat_of(request, images.tobytes)
    ticket = await errand.accept(Wish(TokenizeJob.of(images), repeat=repeat))
    tokens = tokens_of(await errand.outcome(ticket))
    if query.encoding == "npy":
        return Response(npy.write_npy(tokens.array()[0]), media_type=npy.MEDIA_TYPE)
    return tokens_answer(tokens, query.encoding, ticket.model.offer).response()


@router.post(
    "/detokenize",
    responses=_PICTURE | openapi.post_errors(),
    openapi_extra=openapi.body(DETOKENIZE, npy.MEDIA_TYPE, _PACKED),
)
async def detokenize(
    request: Request, desk: OpenDesk, caller: CallerDep, query: Annotated[DetokenizeQuery, Query()]
) -> Response:
    """Turn one token grid back into a picture: JSON as `/tokenize` answers it, a NumPy file, packed bytes."""
    media = media_type(request)
    if media in (npy.MEDIA_TYPE, _PACKED):
        data = await read_body(request, desk.small_body)
        model = await desk.model(query.model)
        grid = _grid_of(data, media, model.offer)
        file_format, deadline_ms = query.format, DEFAULT_DEADLINE_MS
    else:
        body = await read_json(request, DETOKENIZE, desk.small_body)
        model = await desk.model(body.model or query.model)
        grid = body.token_grid(model.offer)
        file_format, deadline_ms = body.format or query.format, body.deadline_ms
    repeat = repeat_of(request, lambda: grid.tobytes() + file_format.encode())
    errand = Errand(desk, request, model, caller, deadline_ms)
    ticket = await errand.accept(Wish(DetokenizeJob.one(grid, file_format), repeat=repeat))
    view = await errand.outcome(ticket)
    return pictures_response(view, request.headers.get("accept", ""), ticket.model.offer)


def _grid_of(data: bytes, media: str, offer: Offer) -> Indices:
    if media == _PACKED:
        return check_grid(bits.unpack(data, offer.grid, offer.bits), offer)
    return check_grid(npy.read_npy(data, offer.grid), offer)
