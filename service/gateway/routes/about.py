"""`GET /classes` and `GET /info`."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from service.gateway import openapi
from service.gateway.answers import ClassAnswer, ClassesAnswer, InfoAnswer
from service.gateway.desk import DeskDep
from service.gateway.queries import ClassesQuery, ModelQuery
from service.gateway.schemas import (
    MAX_DEADLINE_MS,
    MAX_GUIDANCE_POW,
    MAX_GUIDANCE_SCALE,
    MAX_NOISE_TEMPERATURE,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    SAMPLING_FIELDS,
)
from service.gateway.served_model import ServedModel

router = APIRouter(tags=["model"])


@router.get("/classes", responses=openapi.answer(200, ClassesAnswer) | openapi.errors(422))
async def classes(desk: DeskDep, query: Annotated[ClassesQuery, Query()]) -> Response:
    """The classes that can be drawn, or those whose name contains `search`."""
    offer = desk.catalogue.get(query.model).offer
    found = [ClassAnswer(id=one, name=offer.class_names[one]) for one in offer.search(query.search)]
    return ClassesAnswer(classes=found).response()


@router.get("/info", responses=openapi.answer(200, InfoAnswer) | openapi.errors(422))
async def info(desk: DeskDep, query: Annotated[ModelQuery, Query()]) -> Response:
    """The model, its defaults and the bounds of requests."""
    model = desk.catalogue.get(query.model)
    offer = model.offer
    return InfoAnswer(
        model=offer.model,
        bundle=offer.bundle,
        image_size=offer.image_size,
        grid=offer.grid,
        bits=offer.bits,
        runtime=await _runtime(model),
        has_generator=offer.has_generator,
        defaults={name: getattr(offer.sampling, name) for name in SAMPLING_FIELDS},
        limits={
            "max_images": offer.max_images,
            "steps": [1, offer.max_steps],
            "guidance_scale": [0, MAX_GUIDANCE_SCALE],
            "guidance_pow": [0, MAX_GUIDANCE_POW],
            "guidance_cutoff": [0, MAX_GUIDANCE_SCALE],
            "guidance_interval": [0, 1],
            "temperature": [MIN_TEMPERATURE, MAX_TEMPERATURE],
            "noise_temperature": [0, MAX_NOISE_TEMPERATURE],
            "deadline_ms": [1, MAX_DEADLINE_MS],
            "upload_bytes": offer.upload_bytes,
        },
        licence=offer.licence,
    ).response()


async def _runtime(model: ServedModel) -> str | None:
    names = {str(worker["runtime"]) for worker in await model.fleet.living() if "runtime" in worker}
    return ", ".join(sorted(names)) or None
