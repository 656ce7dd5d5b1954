"""`POST /generate`."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.gateway import openapi
from service.gateway.answers import PicturesAnswer
from service.gateway.bodies import read_json
from service.gateway.caller import caller_of
from service.gateway.desk import desk_of, open_desk
from service.gateway.errand import Errand
from service.gateway.event_stream import event_stream
from service.gateway.job_events import follow
from service.gateway.plain_route import PlainRoute
from service.gateway.queries import check_no_query
from service.gateway.rendering import pictures_response
from service.gateway.repeat import repeat_of
from service.gateway.schemas import GENERATE
from service.gateway.wish import Wish

router = APIRouter(tags=["pictures"], route_class=PlainRoute)

_ANSWER = openapi.answer(
    200,
    PicturesAnswer,
    "the pictures; with Accept: image/* and one picture, the picture itself",
    openapi.PICTURES | openapi.media("text/event-stream"),
)


@router.post(
    "/generate",
    responses=_ANSWER | openapi.post_errors(),
    openapi_extra=openapi.body(GENERATE),
)
async def generate(request: Request) -> Response:
    """Draw pictures of one or several classes, or with a mask a part of a given picture.

    With `Accept: image/*` one picture comes as itself; several come as JSON whatever `Accept` says.
    """
    desk, caller = await open_desk(await desk_of(request)), await caller_of(request)
    check_no_query(request)
    body = await read_json(request, GENERATE, desk.any_body)
    repeat = repeat_of(request, lambda: body.model_dump_json(exclude_unset=True).encode())
    model = await desk.model(body.model)
    errand = Errand(desk, request, model, caller, body.deadline_ms)
    job = await errand.inset(body, body.job(model.offer, events=body.stream))
    ticket = await errand.accept(Wish(job, priority=body.priority, repeat=repeat))
    if body.stream:
        return event_stream(follow(desk, ticket))
    view = await desk.outcome(ticket, request)
    return pictures_response(view, request.headers.get("accept", ""), ticket.model.offer)
