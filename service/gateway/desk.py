"""The front desk: takes jobs in for the routes, waits for them, and gives them up when the client leaves."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.requests import ClientDisconnect

from models.bundle import Bundle
from service.errors import InvalidRequest, ServiceError, Unavailable
from service.gateway.bodies import BodyLimits
from service.gateway.caller import Caller
from service.gateway.catalogue import Catalogue
from service.gateway.decoder_pool import DecoderPool
from service.gateway.responses import job_error
from service.gateway.served_model import ServedModel
from service.jobs.job import DONE, JobView, Kind, NewJob, Priority
from service.jobs.payloads import Payload
from service.settings import Settings
from service.telemetry import GatewayMetrics

log = logging.getLogger(__name__)

_MAX_KEY = 255
_DRAIN_RETRY_S = 2.0
_SMALL_BODY = 1 << 20


@dataclass(frozen=True)
class Repeat:
    """An idempotency key and the digest of the request that came with it."""

    key: str
    fingerprint: str


@dataclass(frozen=True)
class Ticket:
    """A job that somebody follows. `outcome` ends when the job does.

    `keep`: the job outlives the client's visit. `counted`: its end is counted, client or not.
    """

    id: str
    model: ServedModel = field(repr=False)
    tenant: str
    outcome: asyncio.Task[JobView] = field(repr=False)
    keep: bool
    counted: bool


class Desk:
    """What all routes share. `draining` turns new work away while running requests end."""

    def __init__(self, settings: Settings, bundles: Sequence[Bundle], redis_url: str) -> None:
        self.catalogue = Catalogue(bundles, settings, redis_url)
        self.metrics = GatewayMetrics()
        self.decoders = DecoderPool(settings.decoders, max_pixels=settings.upload_pixels)
        self.max_images = settings.max_images
        self.draining = False
        seconds = settings.body_timeout_s
        self.any_body = BodyLimits(settings.body_bytes, seconds)
        self.small_body = BodyLimits(min(settings.body_bytes, _SMALL_BODY), seconds)
        self.upload_body = BodyLimits(settings.upload_bytes, seconds)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Start what needs an event loop. Redis may still be away."""
        await self.catalogue.open()
        await self.decoders.start()

    async def close(self) -> None:
        """Give up what is left, stop, and wait until nothing runs any more."""
        await self.decoders.close()
        cancelling = [task for task in self._tasks if task.get_name() == "cancel"]
        await asyncio.gather(*cancelling, return_exceptions=True)
        await self.catalogue.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def check_open(self) -> None:
        """Raise Unavailable while draining, without a living worker of any model, or without Redis."""
        if self.draining:
            raise Unavailable("the service is shutting down", retry_after_s=_DRAIN_RETRY_S)
        await self.catalogue.check_alive()

    async def model(self, name: str | None = None) -> ServedModel:
        """The model `name`, or the default, with a living worker. Raises InvalidRequest, Unavailable."""
        model = self.catalogue.get(name)
        await model.fleet.workers()
        return model

    async def accept(
        self,
        model: ServedModel,
        caller: Caller,
        kind: Kind,
        payload: Payload,
        *,
        rows: int,
        deadline_ms: int,
        priority: Priority = "interactive",
        repeat: Repeat | None = None,
        keep: bool = False,
        events: bool = False,
    ) -> Ticket:
        """Queue a job; a repeated idempotency key gives the ticket of the first one. Raises ServiceError."""
        keep = keep or repeat is not None
        job = NewJob(
            id=uuid.uuid4().hex,
            kind=kind,
            payload=payload.pack(),
            fingerprint=repeat.fingerprint if repeat else "",
            rows=rows,
            tenant=caller.tenant,
            priority=priority,
            deadline_ms=deadline_ms,
            idempotency_key=repeat.key if repeat else None,
            keep_result=keep,
            wants_events=events,
        )
        job_id = await model.jobs.submit(job)
        counted = job_id == job.id
        outcome = self._spawn(self._settle(model, job_id, counted))
        return Ticket(job_id, model, caller.tenant, outcome, keep, counted)

    def visit(self, model: ServedModel, caller: Caller, job_id: str) -> Ticket:
        """A ticket for a job that was accepted before, here or elsewhere."""
        outcome = self._spawn(self._settle(model, job_id, counted=False))
        return Ticket(job_id, model, caller.tenant, outcome, keep=True, counted=False)

    async def outcome(self, ticket: Ticket, request: Request) -> JobView:
        """The finished job; its error as an exception. A client that leaves cancels it: ClientDisconnect."""
        gone = asyncio.create_task(_departure(request))
        try:
            await asyncio.wait((ticket.outcome, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not ticket.outcome.done():
                self.abandon(ticket)
        if not ticket.outcome.done():
            raise ClientDisconnect
        return self.collect(ticket)

    def collect(self, ticket: Ticket) -> JobView:
        """What `ticket.outcome` ended with: the done job, or its error as an exception."""
        view = ticket.outcome.result()
        if not ticket.keep:
            self._spawn(ticket.model.jobs.forget(view.id))
        if view.state != DONE:
            raise job_error(view)
        return view

    def abandon(self, ticket: Ticket) -> None:
        """The client left: cancel the job, or only stop to watch one that is to be found again later."""
        if not ticket.keep:
            self._spawn(self._cancel(ticket), name="cancel")
        elif not ticket.counted:
            ticket.outcome.cancel()

    async def _cancel(self, ticket: Ticket) -> None:
        try:
            await ticket.model.jobs.cancel(ticket.id, ticket.tenant)
        except ServiceError as exc:
            log.info("job %s could not be cancelled: %s", ticket.id, exc)

    async def _settle(self, model: ServedModel, job_id: str, counted: bool) -> JobView:
        view = await model.jobs.wait(job_id)
        if counted:
            self.metrics.job_ended(view)
        return view

    def _spawn(self, work: Coroutine[Any, Any, Any], name: str | None = None) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # Looked at here, since the client who waited for it may have left.
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, ServiceError):
            log.error("a task of the desk failed", exc_info=error)


def repeat_of(request: Request, content: Callable[[], bytes]) -> Repeat | None:
    """The request's Idempotency-Key with a digest of path, query and `content()`; None without one.

    Raises InvalidRequest for a key that is empty, too long or not printable ASCII.
    """
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 1 <= len(key) <= _MAX_KEY or not key.isascii() or not key.isprintable():
        raise InvalidRequest(
            f"Idempotency-Key has {len(key)} characters; allowed are 1 to {_MAX_KEY} printable ASCII ones"
        )
    digest = hashlib.sha256(f"{request.url.path}?{request.url.query}\n".encode())
    digest.update(content())
    return Repeat(key, digest.hexdigest())


async def _departure(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def desk_of(request: Request) -> Desk:
    """The desk of the application that serves `request`."""
    desk = request.app.state.desk
    assert isinstance(desk, Desk)
    return desk


async def open_desk(desk: Annotated[Desk, Depends(desk_of)]) -> Desk:
    """The desk, when it takes new work; else Unavailable before the body is read."""
    await desk.check_open()
    return desk


DeskDep = Annotated[Desk, Depends(desk_of)]
OpenDesk = Annotated[Desk, Depends(open_desk)]
