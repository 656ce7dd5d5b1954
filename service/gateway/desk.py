"""The front desk: takes jobs in for the routes, waits for them, and gives them up when the client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.requests import ClientDisconnect

from models.bundle import Bundle
from service.errors import Moved, NoWorker, QuotaExceeded, ServiceError, Unavailable
from service.gateway.bodies import BodyLimits, BodyRoom
from service.gateway.caller import Caller
from service.gateway.catalogue import Catalogue
from service.gateway.decoder_pool import DecoderPool
from service.gateway.key_ring import KeyRing
from service.gateway.responses import job_error
from service.gateway.served_model import ServedModel
from service.gateway.spans import open_spans
from service.gateway.wish import Wish
from service.jobs.allowance import UNLIMITED, Allowance, Allowances
from service.jobs.job import DONE, JobView, NewJob
from service.jobs.payloads import unpack_job
from service.logs import note_job
from service.settings import Settings
from service.telemetry import GatewayMetrics

log = logging.getLogger(__name__)

_DRAIN_RETRY_S = 2.0
_MOVES = 3  # revisions that may be published while one job is submitted
_SMALL_BODY = 1 << 20


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
        self.metrics = GatewayMetrics(model.name for model in self.catalogue.models)
        self.keys = KeyRing(settings.api_keys, settings.api_keys_file)
        self.allowances = Allowances(redis_url)
        self.spans = open_spans()
        self.decoders = DecoderPool(settings.decoders, max_pixels=settings.upload_pixels)
        self.max_images = settings.max_images
        self.draining = False
        seconds, room = settings.body_timeout_s, BodyRoom(settings.bodies_bytes)
        self.any_body = BodyLimits(settings.body_bytes, seconds, room)
        self.small_body = BodyLimits(min(settings.body_bytes, _SMALL_BODY), seconds, room)
        self.upload_body = BodyLimits(settings.upload_bytes, seconds, room)
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
        await self.allowances.close()

    async def check_open(self) -> None:
        """Raise Unavailable while draining, without a living worker of any model, or without Redis."""
        if self.draining:
            raise Unavailable("the service is shutting down", retry_after_s=_DRAIN_RETRY_S)
        await self.catalogue.check_alive()

    async def model(self, name: str | None = None) -> ServedModel:
        """The model `name`, or the default, with a living worker. Raises InvalidRequest, Unavailable."""
        return await self.catalogue.pick(name)

    async def accept(self, model: ServedModel, caller: Caller, wish: Wish, deadline_ms: int) -> Ticket:
        """Queue a job; a repeated idempotency key gives the ticket of the first one. Raises ServiceError."""
        job = wish.job(caller, deadline_ms)
        model, job_id = await self._charge(model, caller.allowance if wish.charged else UNLIMITED, job)
        note_job(job_id)
        counted = job_id == job.id
        outcome = self._spawn(self._settle(model, job_id, counted))
        return Ticket(job_id, model, caller.tenant, outcome, job.keep_result, counted)

    async def _charge(self, model: ServedModel, allowance: Allowance, job: NewJob) -> tuple[ServedModel, str]:
        """Submit `job` and charge for its pictures, unless it is turned away or was there before."""
        try:
            await self.allowances.charge_images(job.tenant, allowance, job.rows)
        except QuotaExceeded:
            if (first := await self._first(model, job)) is None:
                raise
            return first
        try:
            with self.spans.submit(job.kind, job.id, job.rows) as trace:
                model, job_id = await self._submit(model, replace(job, trace=trace) if trace else job)
        except ServiceError:
            await self.allowances.refund(job.tenant, allowance, images=job.rows)
            raise
        if job_id != job.id:
            await self.allowances.refund(job.tenant, allowance, images=job.rows)
        return model, job_id

    async def _first(self, model: ServedModel, job: NewJob) -> tuple[ServedModel, str] | None:
        """The job that the idempotency key of `job` led to before."""
        if job.idempotency_key is None:
            return None
        repeat = (job.tenant, job.idempotency_key, job.fingerprint)
        job_id = await model.jobs.first(*repeat)
        return await self.catalogue.first(model, *repeat) if job_id is None else (model, job_id)

    async def _submit(self, model: ServedModel, job: NewJob) -> tuple[ServedModel, str]:
        """Where the job is, and its id: `model`, or another revision that has it or has taken over."""
        for _ in range(_MOVES):
            # Looked up anew for each revision: by then the one before may have taken the key in.
            if job.idempotency_key is not None:
                first = await self.catalogue.first(model, job.tenant, job.idempotency_key, job.fingerprint)
                if first is not None:
                    return first
            try:
                return model, await model.jobs.submit(job, model.fleet.speed)
            except Moved:
                successor = await self.catalogue.successor(model)
                tokens = unpack_job(job.kind, job.payload).holds_tokens
                if not successor.manifest.understands(model.manifest, tokens=tokens):
                    raise
                model = successor
        raise Unavailable("the model moves from one revision to the next", retry_after_s=_DRAIN_RETRY_S)

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
            ticket.model.jobs.forget(view.id)
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
            self.metrics.job_ended(model.name, view)
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


async def _departure(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def desk_of(request: Request) -> Desk:
    """The desk of the application that serves `request`."""
    desk = request.app.state.desk
    assert isinstance(desk, Desk)
    return desk


async def open_desk(desk: Annotated[Desk, Depends(desk_of)]) -> Desk:
    """The desk, when it takes new work; else Unavailable before the body is read.

    Of several models without workers none is refused here: the body says for which one that is counted.
    """
    try:
        await desk.check_open()
    except NoWorker:
        if len(desk.catalogue.models) == 1:
            raise
    return desk


DeskDep = Annotated[Desk, Depends(desk_of)]
OpenDesk = Annotated[Desk, Depends(open_desk)]
