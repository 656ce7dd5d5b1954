"""`/livez`, `/readyz` and `/metrics`."""

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.errors import Unavailable
from service.gateway import openapi
from service.gateway.answers import LiveAnswer, ReadyAnswer, WorkerAnswer
from service.gateway.desk import DeskDep
from service.gateway.gate import key_holder
from service.gateway.served_model import ServedModel
from service.jobs.job import Depth
from service.telemetry import CONTENT_TYPE

router = APIRouter(tags=["operation"])

_DEPTH_TIMEOUT_S = 1.0


@router.get("/livez", responses=openapi.answer(200, LiveAnswer))
async def livez() -> Response:
    """The process is up; says nothing about Redis or workers."""
    return LiveAnswer(alive=True).response()


@router.get("/readyz", responses=openapi.answer(200, ReadyAnswer) | openapi.errors(503))
async def readyz(request: Request, desk: DeskDep) -> Response:
    """Redis answers, a worker of some model is alive, and this gateway is not shutting down.

    Where API keys are set, the workers are described to callers with a key only.
    """
    await desk.check_open()
    workers = await desk.catalogue.workers()
    answer = ReadyAnswer(ready=True, models={name: bool(its) for name, its in workers.items()})
    if not desk.keys.required or key_holder(desk.keys, request.headers) is not None:
        answer.workers = [WorkerAnswer.model_validate(one) for its in workers.values() for one in its]
    return answer.response()


@router.get(
    "/metrics",
    responses=openapi.answer(200, None, "Prometheus metrics", openapi.media("text/plain")),
    response_class=Response,
)
async def metrics(desk: DeskDep) -> Response:
    """Metrics of this gateway."""
    revisions = desk.catalogue.revisions
    depths = zip(revisions, await asyncio.gather(*map(_depth, revisions)), strict=True)
    desk.metrics.queues([(model.name, depth) for model, depth in depths if depth is not None])
    return Response(desk.metrics.render(), headers={"Content-Type": CONTENT_TYPE})


async def _depth(model: ServedModel) -> Depth | None:
    try:
        async with asyncio.timeout(_DEPTH_TIMEOUT_S):
            return await model.jobs.depth()
    except (TimeoutError, Unavailable):
        return None
