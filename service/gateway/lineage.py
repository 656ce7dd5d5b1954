"""One model through its revisions: new jobs go to the newest one that has a worker.

Only one revision at a time is open to new jobs, whichever gateway is asked, and that is decided in Redis: a
gateway that has not noticed a newer one is refused there and looks again. So a repeated idempotency key
always meets the job of its first use. The former revisions finish what they took, and their jobs can be
looked at until nothing is left of them.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial

from models.bundle import MANIFEST, Bundle, Manifest
from models.errors import MaskBitError
from service.errors import Unavailable
from service.gateway.served_model import ServedModel
from service.gateway.verification_file import VerificationFile
from service.jobs.redis_link import describe
from service.jobs.registry import Registry
from service.settings import Settings

log = logging.getLogger(__name__)

_LOOK_S = 1.0


class Lineage:
    """Starts with the revision that the gateway has on disk; follows what workers register."""

    def __init__(self, bundle: Bundle, registry: Registry, settings: Settings, redis_url: str) -> None:
        self._registry = registry
        self._serve = partial(
            ServedModel,
            settings=settings,
            redis_url=redis_url,
            verification=VerificationFile(bundle.path),
        )
        created_s = int((bundle.path / MANIFEST).stat().st_mtime)
        self.current = self._serve(bundle.manifest, bundle.revision, created_s)
        self._served = {bundle.revision: self.current}
        self._unreadable: set[str] = set()
        self._settled = False
        self._lock = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """What requests call the model."""
        return self.current.name

    @property
    def former(self) -> list[ServedModel]:
        """The revisions that finish their jobs."""
        return [one for one in self._served.values() if one is not self.current]

    async def open(self) -> None:
        """Start; Redis may still be away."""
        await self.current.open()
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Close all revisions."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await asyncio.gather(*(one.close() for one in self._served.values()))

    async def pick(self) -> ServedModel:
        """The revision for a new job, with a living worker. Raises Unavailable."""
        if not self._settled:
            await self.look()
        await self.current.fleet.workers()
        return self.current

    async def successor(self, refused: ServedModel) -> ServedModel:
        """The revision for a job that `refused` did not take since it has moved on. Raises Unavailable."""
        async with self._lock:
            if self.current is refused:
                self._settled = False
                await self._look(fresh=True)
        return self.current

    async def look(self) -> None:
        """Compare with the registry now. Raises Unavailable."""
        async with self._lock:
            await self._look()

    async def _watch(self) -> None:
        told = ""
        while True:
            try:
                await self.look()
                told = ""
            except Unavailable as exc:
                log.debug("the revisions of %s are looked up later: %s", self.name, exc)
            except Exception as exc:
                if describe(exc) != told:
                    log.exception("looking up the revisions of %s failed", self.name)
                told = describe(exc)
            await asyncio.sleep(_LOOK_S)

    async def _look(self, *, fresh: bool = False) -> None:
        registered, turn = await self._registry.revisions(self.name)
        for revision, loaded_s in registered.items():
            if revision not in self._served:
                await self._meet(revision, loaded_s)
        order = [self._served[one] for one in registered if one in self._served]
        order += [one for one in self._served.values() if one not in order]
        chosen = await self._first_alive(order, fresh) or self.current
        if chosen is not self.current or not self._settled:
            await self._turn_to(chosen, turn)
        for one in self.former:
            await self._let_go(one, one.revision in registered)

    async def _meet(self, revision: str, loaded_s: int) -> None:
        """Serve a revision that a worker has registered."""
        if revision in self._unreadable:
            return
        text = await self._registry.manifest(self.name, revision)
        if text is None:
            return
        try:
            model = self._serve(Manifest.from_json(text), revision, loaded_s)
        except (MaskBitError, ValueError) as exc:
            self._unreadable.add(revision)
            log.warning("the revision %s@%s is not served: %s", self.name, revision, exc)
            return
        await model.open()
        self._served[revision] = model

    async def _first_alive(self, order: list[ServedModel], fresh: bool) -> ServedModel | None:
        for one in order:
            with suppress(Unavailable):
                await one.fleet.workers(fresh=fresh)
                return one
        return None

    async def _turn_to(self, chosen: ServedModel, turn: int) -> None:
        """Close all other revisions to new jobs before this one is opened; leave it to a later turn, if any.

        No one script can do so, since each revision has a hash slot of its own. Still at most one is open: a
        later turn knows the revisions of the earlier ones, and has closed them to these too before it opens.
        """
        self._settled = False
        for one in self._served.values():
            if one is not chosen and not await one.jobs.close_door(turn):
                return
        if not await chosen.jobs.open_door(turn):
            return
        if chosen is not self.current:
            log.info("new jobs go to %s, no longer to %s", chosen.offer.bundle, self.current.offer.bundle)
        self.current = chosen
        self._settled = True

    async def _let_go(self, former: ServedModel, registered: bool) -> None:
        """Forget a revision of which nothing is left. Where Redis forgot it too early, it is told again."""
        if await former.jobs.dissolve():
            if registered:
                await self._registry.remove(self.name, former.revision)
            if not former.jobs.busy:
                log.info("nothing is left of %s", former.offer.bundle)
                del self._served[former.revision]
                await former.close()
        elif not registered:
            await self._registry.keep(self.name, former.revision, former.manifest.to_json())
            # Its door may be open again.
            self._settled = False
