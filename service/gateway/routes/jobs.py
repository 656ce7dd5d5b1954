"""`/jobs`: work that is asked for now and looked at later."""

import re
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.errors import NotFound
from service.gateway import openapi
from service.gateway.answers import (
    STATE_WORDS,
    ErrorAnswer,
    ErrorDetail,
    JobAnswer,
    PicturesAnswer,
    TokensAnswer,
    TokensListAnswer,
)
from service.gateway.bodies import read_json
from service.gateway.caller import CallerDep
from service.gateway.desk import DeskDep, OpenDesk, Ticket
from service.gateway.errand import Errand
from service.gateway.event_stream import event_stream, resume_point
from service.gateway.job_events import follow
from service.gateway.offer import Offer
from service.gateway.queries import JobQuery, check_no_query
from service.gateway.rendering import pictures_answer, pictures_of, tokens_answer, tokens_of
from service.gateway.repeat import Repeat, repeat_of
from service.gateway.responses import job_error, request_id_of
from service.gateway.schemas import ORDER, DetokenizeOrder, GenerateOrder, Order, TokenizeOrder
from service.gateway.served_model import ServedModel
from service.gateway.wish import Wish
from service.jobs.job import DONE, QUEUED, JobView
from service.jobs.payloads import DetokenizeJob, TokenizeJob

router = APIRouter(prefix="/jobs", tags=["jobs"])

_ID = re.compile(r"[0-9a-f]{32}")


@router.post(
    "",
    status_code=202,
    responses=openapi.answer(202, JobAnswer, "accepted; Location says where to look")
    | openapi.errors(408, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra=openapi.body(ORDER),
)
async def create(request: Request, desk: OpenDesk, caller: CallerDep) -> Response:
    """Take a job in and answer at once."""
    check_no_query(request)
    order = await read_json(request, ORDER, desk.any_body)
    repeat = repeat_of(request, lambda: order.model_dump_json(exclude_unset=True).encode())
    model = await desk.model(order.model)
    ticket = await _accept(Errand(desk, request, model, caller, order.deadline_ms), order, repeat)
    try:
        answer = _answer(await ticket.model.jobs.get(ticket.id, ticket.tenant), ticket.model)
    except NotFound:
        # Redis lost everything between the two calls; this gateway submits the job again.
        answer = JobAnswer.model_construct(id=ticket.id, kind=order.kind, state=STATE_WORDS[QUEUED])
    return answer.response(202, {"Location": f"/jobs/{ticket.id}"})


async def _accept(errand: Errand, order: Order, repeat: Repeat | None) -> Ticket:
    if isinstance(order, GenerateOrder):
        drawing = await errand.inset(order, order.job(errand.model.offer, events=True))
        return await errand.accept(Wish(drawing, order.priority, repeat, keep=True))
    if isinstance(order, DetokenizeOrder):
        job = DetokenizeJob.one(order.token_grid(errand.model.offer), order.format or "png")
        return await errand.accept(Wish(job, repeat=repeat, keep=True))
    assert isinstance(order, TokenizeOrder)
    images = TokenizeJob.of(await errand.fitted([(order.upload(), order.fit)]))
    return await errand.accept(Wish(images, repeat=repeat, keep=True))


@router.get(
    "/{job_id}",
    responses=openapi.answer(200, JobAnswer, "done")
    | openapi.answer(202, JobAnswer, "queued or running")
    | openapi.answer(409, JobAnswer, "cancelled")
    | openapi.answer(500, JobAnswer | ErrorAnswer, "failed")
    | openapi.answer(503, JobAnswer | ErrorAnswer, "ask for the job again; without `id` only for its state")
    | openapi.answer(504, JobAnswer, "the deadline has passed")
    | openapi.errors(404, 410, 422),
)
async def look(
    request: Request, job_id: str, desk: DeskDep, caller: CallerDep, query: Annotated[JobQuery, Query()]
) -> Response:
    """The state of a job and, when it is done, its result as the waiting request would have got it."""
    model, view = await desk.catalogue.find(checked(job_id), caller.tenant)
    answer = _answer(view, model)
    if not view.terminal:
        return answer.response(202)
    if view.state == DONE:
        answer.result = _result(view, query.encoding, model.offer)
        return answer.response()
    error = job_error(view)
    answer.error = ErrorDetail(code=error.code, message=error.message, request_id=request_id_of(request))
    return answer.response(error.status)


@router.delete(
    "/{job_id}",
    responses=openapi.answer(200, JobAnswer, "the state after it") | openapi.errors(404, 410, 422, 503),
)
async def cancel(job_id: str, desk: DeskDep, caller: CallerDep) -> Response:
    """Cancel a job; one that has ended stays as it is."""
    model, _ = await desk.catalogue.find(checked(job_id), caller.tenant)
    await model.jobs.cancel(job_id, caller.tenant)
    return _answer(await model.jobs.get(job_id, caller.tenant), model).response()


@router.get(
    "/{job_id}/events",
    responses=openapi.answer(200, None, "Server-Sent Events", openapi.media("text/event-stream"))
    | openapi.errors(404, 410, 422, 503),
    response_class=Response,
)
async def events(request: Request, job_id: str, desk: DeskDep, caller: CallerDep) -> Response:
    """Follow a job to its end; Last-Event-ID resumes. Leaving does not cancel the job."""
    model, _ = await desk.catalogue.find(checked(job_id), caller.tenant)
    after = resume_point(request.headers.get("last-event-id"))
    return event_stream(follow(desk, desk.visit(model, caller, job_id), after))


def checked(job_id: str) -> str:
    """Return `job_id`; NotFound when it is none that was ever given out."""
    if not _ID.fullmatch(job_id):
        raise NotFound(f"there is no job {job_id[:40]!r}")
    return job_id


def _answer(view: JobView, model: ServedModel) -> JobAnswer:
    answer = JobAnswer.model_construct(id=view.id, kind=view.kind, state=STATE_WORDS[view.state])
    if view.position is not None:
        answer.position = view.position
        answer.eta_ms = model.fleet.speed.eta_ms(view)
    return answer


def _result(view: JobView, encoding: str, offer: Offer) -> PicturesAnswer | TokensAnswer | TokensListAnswer:
    if view.kind == "tokenize":
        return tokens_answer(tokens_of(view), encoding, offer)
    return pictures_answer(view, pictures_of(view), offer)
