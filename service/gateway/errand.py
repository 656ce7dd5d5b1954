"""A request that takes several jobs, one after another: one caller, one model, one deadline over them all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from fastapi import Request

from models.bits import Indices, Mask
from service.errors import DeadlinePassed, InvalidRequest, Unavailable
from service.gateway.answers import Usage
from service.gateway.bodies import check_size
from service.gateway.caller import Caller
from service.gateway.decoder_pool import Pixels
from service.gateway.desk import Desk, Ticket
from service.gateway.grids import Source, check_grid, from_base64
from service.gateway.masks import check_mask, mask_of_pixels, mask_of_rows
from service.gateway.rendering import made_by, tokens_of
from service.gateway.schemas import GenerateBody, inset
from service.gateway.served_model import ServedModel
from service.gateway.uploads import Fit, Ground
from service.gateway.wish import Wish
from service.jobs.job import JobView
from service.jobs.payloads import GenerateJob, TokenizeJob


class Errand:
    """Runs jobs for one request. Whatever waits here is given up when the client leaves or time is over."""

    def __init__(
        self, desk: Desk, request: Request, model: ServedModel, caller: Caller, deadline_ms: int
    ) -> None:
        self.desk = desk
        self.request = request
        self.model = model
        self.caller = caller
        self._ends_s = _now_s() + deadline_ms / 1000
        self._done: list[JobView] = []

    async def accept(self, wish: Wish) -> Ticket:
        """`Desk.accept` for caller and model, with what is left of the time. Raises DeadlinePassed too."""
        left_ms = round((self._ends_s - _now_s()) * 1000)
        if left_ms < 1:
            raise DeadlinePassed("the deadline passed before the request could be queued")
        return await self.desk.accept(self.model, self.caller, wish, left_ms)

    async def fitted(self, uploads: Sequence[tuple[bytes, Fit]], ground: Ground = "white") -> Pixels:
        """The pictures as the model reads them, u8 (count, size, size, 3), decoded in another process."""
        size = self.model.offer.image_size
        limit = self.desk.upload_body.max_bytes
        for data, _ in uploads:
            check_size(len(data), limit, "a picture")
        decode = self.desk.decoders.decode
        return np.stack([await decode(data, size=size, fit=fit, ground=ground) for data, fit in uploads])

    async def tokenize(self, pixels: Pixels, *, charged: bool = False) -> Indices:
        """Token indices i64 (count, h, w) of pictures u8 (count, size, size, 3), by a job.

        It is charged to the caller's images only where no other job follows that is. Raises Unavailable when
        another revision made them, whose tokens may mean something else to the jobs that follow.
        """
        ticket = await self.accept(Wish(TokenizeJob.of(pixels), charged=charged))
        tokens = tokens_of(await self.outcome(ticket))
        if made_by(tokens, ticket.model.offer) != self.model.offer.bundle:
            raise Unavailable(
                "the model moved to another revision while it read the picture", retry_after_s=1.0
            )
        return tokens.array()

    async def grids(self, sources: Sequence[Source], *, charged: bool = False) -> list[Indices]:
        """Token indices i64 (h, w) of each source; all pictures among them are tokenized by one job.

        `charged`: as in `tokenize`.
        """
        offer = self.model.offer
        uploads = [one.upload() for one in sources]
        pictures = [(data, one.fit) for data, one in zip(uploads, sources, strict=True) if data is not None]
        if len(pictures) > offer.max_images:
            raise InvalidRequest(
                f"{len(pictures)} pictures are given; at most {offer.max_images} are allowed"
            )
        given = [None if data else one.token_grid(offer) for data, one in zip(uploads, sources, strict=True)]
        found = iter(await self.tokenize(await self.fitted(pictures), charged=charged) if pictures else ())
        return [check_grid(next(found), offer) if grid is None else grid for grid in given]

    async def inset(self, body: GenerateBody, job: GenerateJob) -> GenerateJob:
        """`job`, on the picture and under the mask of its `body` if there are any. Raises InvalidRequest."""
        if body.mask is None:
            return job
        mask = await self._mask(body.mask, body.fit)
        [tokens] = await self.grids([body])
        return inset(job, tokens, mask, self.model.offer)

    async def _mask(self, given: str | list[list[int]], fit: Fit) -> Mask:
        offer = self.model.offer
        if not isinstance(given, str):
            return check_mask(mask_of_rows(given, offer))
        # On black, so that neither a margin nor what is transparent counts as marked.
        pixels = await self.fitted([(from_base64("mask", given), fit)], ground="black")
        return check_mask(mask_of_pixels(pixels[0], offer))

    async def outcome(self, ticket: Ticket) -> JobView:
        """The finished job; its error as an exception."""
        view = await self.desk.outcome(ticket, self.request)
        self._done.append(view)
        return view

    @property
    def usage(self) -> Usage:
        """What the jobs took together; nothing was drawn by them."""
        return Usage(
            steps=0,
            forward_passes=0,
            queue_ms=sum(max(0, one.started_ms - one.created_ms) for one in self._done),
            compute_ms=sum(max(0, one.finished_ms - one.started_ms) for one in self._done),
        )


def _now_s() -> float:
    return asyncio.get_running_loop().time()
