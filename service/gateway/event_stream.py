"""Server-Sent Events: how the events of a job are written."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from pydantic_core import to_json
from starlette.responses import StreamingResponse

from service.gateway.job_events import JobEvent

_EVENT_ID = re.compile(r"\d{1,19}(-\d{1,19})?")
_PING = b": ping\n\n"


def event_stream(events: AsyncGenerator[JobEvent, None]) -> StreamingResponse:
    """An HTTP answer of `events` that no proxy should hold back."""
    headers = {"X-Accel-Buffering": "no"}
    return StreamingResponse(_frames(events), media_type="text/event-stream", headers=headers)


async def _frames(events: AsyncGenerator[JobEvent, None]) -> AsyncGenerator[bytes, None]:
    # Closed at once when the client leaves, so that its job is given up then and not at some later time.
    async with aclosing(events):
        async for event in events:
            yield frame(event)


def frame(event: JobEvent) -> bytes:
    """The bytes of one event; a ping is a comment."""
    if event.name == "ping":
        return _PING
    head = f"id: {event.id}\n" if event.id else ""
    return f"{head}event: {event.name}\ndata: ".encode() + to_json(event.data) + b"\n\n"


def resume_point(last_event_id: str | None) -> str:
    """The event id to go on after; the beginning for anything that is none of ours."""
    return last_event_id if last_event_id and _EVENT_ID.fullmatch(last_event_id) else "0"
