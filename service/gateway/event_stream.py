"""Server-Sent Events of a job: progress from its event stream, pictures and end from its result."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

from pydantic_core import to_json
from starlette.responses import StreamingResponse

from service.errors import ServiceError
from service.gateway.desk import Desk, Ticket
from service.gateway.offer import Offer
from service.gateway.rendering import image_answer, pictures_of, usage_of
from service.jobs.job import JobView

PING_S = 10.0
_EVENT_ID = re.compile(r"\d{1,19}(-\d{1,19})?")
_PING = b": ping\n\n"


def event_stream(frames: AsyncGenerator[bytes, None]) -> StreamingResponse:
    """An HTTP answer of `frames` that no proxy should hold back."""
    return StreamingResponse(frames, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def frame(event: str, data: object, event_id: str | None = None) -> bytes:
    """One event."""
    head = f"id: {event_id}\n" if event_id else ""
    return f"{head}event: {event}\ndata: ".encode() + to_json(data) + b"\n\n"


def resume_point(last_event_id: str | None) -> str:
    """The event id to go on after; the beginning for anything that is none of ours."""
    return last_event_id if last_event_id and _EVENT_ID.fullmatch(last_event_id) else "0"


async def follow(desk: Desk, ticket: Ticket, after: str = "0") -> AsyncGenerator[bytes, None]:
    """All events of a job to its end. A client that leaves before cancels the job, unless it is kept."""
    try:
        position = (await ticket.model.jobs.get(ticket.id, ticket.tenant)).position
        yield frame("queued", {"id": ticket.id, "position": position or 0})
        async for data in _progress(ticket, after):
            yield data
        for data in _result(ticket.model.offer, desk.collect(ticket)):
            yield data
    except ServiceError as exc:
        yield frame("error", {"code": exc.code, "message": exc.message})
    finally:
        if not ticket.outcome.done():
            desk.abandon(ticket)


async def _progress(ticket: Ticket, after: str) -> AsyncIterator[bytes]:
    events = aiter(ticket.model.jobs.events(ticket.id, after))
    upcoming: asyncio.Future[tuple[str, bytes]] | None = None
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(anext(events))
            watched: tuple[asyncio.Future[Any], ...] = (ticket.outcome, upcoming)
            done, _ = await asyncio.wait(watched, timeout=PING_S, return_when=asyncio.FIRST_COMPLETED)
            if upcoming in done:
                event_id, text = upcoming.result()
                upcoming = None
                message = json.loads(text)
                yield frame(message["event"], message["data"], event_id)
            elif done:
                return
            else:
                yield _PING
    finally:
        if upcoming is not None:
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)


def _result(offer: Offer, view: JobView) -> Iterator[bytes]:
    done: dict[str, object] = {"id": view.id, "model": offer.model}
    if view.kind != "tokenize":
        pictures = pictures_of(view)
        for index in range(len(pictures.files)):
            image = image_answer(pictures, index, offer).model_dump(exclude_unset=True)
            yield frame("image", {"index": index, **image})
        done["usage"] = usage_of(view, pictures).model_dump()
    yield frame("done", done)
