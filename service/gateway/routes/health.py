"""`/livez`, `/readyz` and `/metrics`."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.errors import NoWorker, Unavailable
from service.gateway import openapi
from service.gateway.answers import LiveAnswer, ReadyAnswer, WorkerAnswer
from service.gateway.desk import DeskDep
from service.gateway.gate import key_holder
from service.gateway.served_model import ServedModel
from service.jobs.job import Depth
from service.telemetry import CONTENT_TYPE

router = APIRouter(tags=["operation"])

_LOOK_TIMEOUT_S = 1.0


@router.get("/livez", responses=openapi.answer(200, LiveAnswer))
async def livez() -> Response:
    """The process is up; says nothing about Redis or workers."""
    return LiveAnswer(alive=True).response()


@router.get("/readyz", responses=openapi.answer(200, ReadyAnswer) | openapi.errors(422, 503))
async def readyz(
    request: Request,
    desk: DeskDep,
    workers: Annotated[bool, Query(description="0: the gateway alone counts, with Redis")] = True,
) -> Response:
    """Redis answers, a worker of some model is alive, and this gateway is not shutting down.

    With `workers=0` it is ready without a worker too, as long as it can look jobs up and take them in.
    Where API keys are set, the workers are described to callers with a key only.
    """
    try:
        await desk.check_open()
    except NoWorker:
        if workers:
            raise
    living = await desk.catalogue.workers()
    answer = ReadyAnswer(ready=True, models={name: bool(its) for name, its in living.items()})
    if not desk.keys.required or key_holder(desk.keys, request.headers) is not None:
        answer.workers = [WorkerAnswer.model_validate(one) for its in living.values() for one in its]
    return answer.response()


@router.get(
    "/metrics",
    responses=openapi.answer(200, None, "Prometheus metrics", openapi.media("text/plain")),
    response_class=Response,
)
async def metrics(desk: DeskDep) -> Response:
    """Metrics of this gateway."""
    desk.metrics.queues(await asyncio.gather(*map(_look, desk.catalogue.revisions)))
    return Response(desk.metrics.render(), headers={"Content-Type": CONTENT_TYPE})


async def _look(model: ServedModel) -> tuple[str, Depth, int] | None:
    """Name, queues and living workers of one revision; None while Redis is away."""
    try:
        async with asyncio.timeout(_LOOK_TIMEOUT_S):
            return model.name, await model.jobs.depth(), await _workers(model)
    except (TimeoutError, Unavailable):
        return None


async def _workers(model: ServedModel) -> int:
    try:
        return len(await model.fleet.workers())
    except NoWorker:
        return 0
