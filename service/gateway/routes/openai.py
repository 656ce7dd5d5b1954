"""The OpenAI images API, as its official client uses it: `/v1/images/generations` and `/v1/models`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.errors import NotFound
from service.gateway import openapi
from service.gateway.bodies import read_json
from service.gateway.caller import CallerDep
from service.gateway.desk import DeskDep, OpenDesk, Ticket
from service.gateway.event_stream import event_stream
from service.gateway.job_events import JobEvent, follow
from service.gateway.offer import Offer
from service.gateway.openai_schemas import (
    IMAGES,
    ImageData,
    ImagesAnswer,
    ImagesBody,
    ModelCard,
    ModelList,
    TokenUsage,
    VerificationCard,
    size_of,
)
from service.gateway.rendering import image_answer, pictures_of
from service.gateway.repeat import repeat_of
from service.gateway.served_model import ServedModel
from service.gateway.wish import Wish
from service.jobs.job import JobView

router = APIRouter(prefix="/v1", tags=["OpenAI"])

_OWNER = "maskbit"


@router.post(
    "/images/generations",
    responses=openapi.answer(200, ImagesAnswer, "the pictures", openapi.media("text/event-stream"))
    | openapi.post_errors(),
    openapi_extra=openapi.body(IMAGES),
)
async def generations(request: Request, desk: OpenDesk, caller: CallerDep) -> Response:
    """Draw pictures of the class that the prompt names."""
    body = await read_json(request, IMAGES, desk.small_body)
    model = await desk.model(body.model)
    drawing = body.drawing(model.offer)
    job = drawing.job(model.offer, events=drawing.stream)
    repeat = repeat_of(request, lambda: body.model_dump_json(exclude_unset=True).encode())
    ticket = await desk.accept(model, caller, Wish(job, repeat=repeat), body.deadline_ms)
    if body.stream:
        return event_stream(_stream(follow(desk, ticket), ticket, body))
    return _answer(await desk.outcome(ticket, request), ticket.model.offer, body).response()


def _answer(view: JobView, offer: Offer, body: ImagesBody) -> ImagesAnswer:
    pictures = pictures_of(view)
    images = [image_answer(pictures, index, offer) for index in range(len(pictures.files))]
    data = [
        ImageData(b64_json=one.b64 or "", revised_prompt=one.class_name or "", seed=one.seed or 0)
        for one in images
    ]
    return ImagesAnswer(
        created=int(time.time()),
        data=data,
        background="opaque",
        output_format=body.file_format,
        size=size_of(offer),
        usage=TokenUsage.of(offer, len(data)),
    )


async def _stream(
    events: AsyncGenerator[JobEvent, None], ticket: Ticket, body: ImagesBody
) -> AsyncGenerator[JobEvent, None]:
    """The events that OpenAI's clients know: partial images, the completed one, or an error."""
    offer = ticket.model.offer
    previews = 0
    async with aclosing(events):
        async for event in events:
            if event.name == "ping":
                yield event
            elif event.name == "error":
                yield JobEvent("error", {"error": event.data})
            elif event.name == "progress" and "preview" in event.data:
                fields = {"b64_json": event.data["preview"], "partial_image_index": previews}
                yield _picture_event("partial_image", offer, fields, "png")
                previews += 1
            elif event.name == "image":
                usage = TokenUsage.of(offer, 1).model_dump()
                fields = {"b64_json": event.data["b64"], "seed": event.data["seed"], "usage": usage}
                yield _picture_event("completed", offer, fields, body.file_format)


def _picture_event(name: str, offer: Offer, fields: dict[str, Any], output_format: str) -> JobEvent:
    kind = f"image_generation.{name}"
    common = {
        "type": kind,
        "created_at": int(time.time()),
        "background": "opaque",
        "output_format": output_format,
        "quality": "auto",
        "size": size_of(offer),
    }
    return JobEvent(kind, common | fields)


@router.get("/models", responses=openapi.answer(200, ModelList))
async def models(desk: DeskDep) -> Response:
    """The models that the field `model` of a request may name; the first is the default."""
    cards = [await _card(model) for model in desk.catalogue.models]
    return ModelList(object="list", data=cards).response()


@router.get("/models/{name}", responses=openapi.answer(200, ModelCard) | openapi.errors(404))
async def model(name: str, desk: DeskDep) -> Response:
    """One model."""
    for one in desk.catalogue.models:
        if one.name == name:
            return (await _card(one)).response()
    known = ", ".join(one.name for one in desk.catalogue.models)
    raise NotFound(f"there is no model {name[:80]!r}; there are {known}")


async def _card(model: ServedModel) -> ModelCard:
    offer = model.offer
    card = ModelCard(
        id=offer.model,
        object="model",
        created=offer.created_s,
        owned_by=_OWNER,
        bundle=offer.bundle,
        licence=offer.licence,
        image_size=offer.image_size,
        grid=offer.grid,
        bits_per_token=offer.bits,
        classes=len(offer.class_names) if offer.has_generator else 0,
        alive=bool(await model.fleet.living()),
    )
    if (report := model.verification) is not None:
        card.verification = VerificationCard.of(report)
    return card
