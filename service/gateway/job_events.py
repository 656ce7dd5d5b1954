"""What happens to a job, as a client follows it: queued, progress, its pictures, done or error."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from service.errors import NotFound, ServiceError, Unavailable
from service.gateway.answers import STATE_WORDS
from service.gateway.desk import Desk, Ticket
from service.gateway.offer import Offer
from service.gateway.rendering import image_answer, made_by, pictures_of, tokens_of, usage_of
from service.jobs.job import QUEUED, JobView

PING_S = 10.0


@dataclass(frozen=True)
class JobEvent:
    """One event; `id` is where following can be resumed, None for events that a resumed client gets again.

    The name `ping` says only that the job is still being followed.
    """

    name: str
    data: Any
    id: str | None = None


async def follow(desk: Desk, ticket: Ticket, after: str = "0") -> AsyncGenerator[JobEvent, None]:
    """All events of a job to its end. A client that leaves before cancels the job, unless it is kept."""
    try:
        yield await _queued(ticket)
        async for event in _progress(ticket, after):
            yield event
        for event in _result(ticket.model.offer, desk.collect(ticket)):
            yield event
    except ServiceError as exc:
        yield JobEvent("error", {"code": exc.code, "message": exc.message})
    finally:
        if not ticket.outcome.done():
            desk.abandon(ticket)


async def _queued(ticket: Ticket) -> JobEvent:
    """The first event. A job that waits no more has no position, nor has one that Redis has just lost."""
    known: dict[str, object] = {
        "id": ticket.id,
        "state": STATE_WORDS[QUEUED],
        "position": None,
        "eta_ms": None,
    }
    # Whether it is over or is queued again, `outcome` knows.
    with suppress(NotFound):
        view = await ticket.model.jobs.get(ticket.id, ticket.tenant)
        eta_ms = ticket.model.fleet.speed.eta_ms(view)
        known |= {"state": STATE_WORDS[view.state], "position": view.position, "eta_ms": eta_ms}
    return JobEvent("queued", known)


async def _progress(ticket: Ticket, after: str) -> AsyncIterator[JobEvent]:
    events = aiter(ticket.model.jobs.events(ticket.id, after))
    upcoming: asyncio.Future[tuple[str, bytes]] | None = None
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(anext(events))
            watched: tuple[asyncio.Future[Any], ...] = (ticket.outcome, upcoming)
            done, _ = await asyncio.wait(watched, timeout=PING_S, return_when=asyncio.FIRST_COMPLETED)
            if upcoming in done:
                after, text = upcoming.result()
                upcoming = None
                yield _told(after, text)
            elif done:
                break
            else:
                yield JobEvent("ping", None)
    finally:
        if upcoming is not None:
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)
    # A job may be faster than the looks at its events.
    with suppress(Unavailable):
        for event_id, text in await ticket.model.jobs.rest_of_events(ticket.id, after):
            yield _told(event_id, text)


def _told(event_id: str, text: bytes) -> JobEvent:
    message = json.loads(text)
    return JobEvent(message["event"], message["data"], event_id)


def _result(offer: Offer, view: JobView) -> Iterator[JobEvent]:
    done: dict[str, object] = {"id": view.id, "model": offer.model}
    if view.kind == "tokenize":
        done["bundle"] = made_by(tokens_of(view), offer)
    else:
        pictures = pictures_of(view)
        for index in range(len(pictures.files)):
            image = image_answer(pictures, index, offer).model_dump(exclude_unset=True)
            yield JobEvent("image", {"index": index, **image})
        done |= {"bundle": made_by(pictures, offer), "usage": usage_of(view, pictures).model_dump()}
    yield JobEvent("done", done)
