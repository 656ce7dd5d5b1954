"""One bundle at one revision as a gateway serves it: its bounds, its queue, its workers."""

from __future__ import annotations

from models.bundle import Bundle
from service.gateway.offer import Offer
from service.jobs.fleet import Fleet
from service.jobs.keys import Keys
from service.jobs.store import JobStore
from service.settings import Settings


class ServedModel:
    """What a request to one model needs. Redis may be away when it is made and opened."""

    def __init__(self, bundle: Bundle, settings: Settings, redis_url: str) -> None:
        self.offer = Offer.of(bundle, settings)
        keys = Keys(bundle.manifest.name, bundle.revision)
        self.jobs = JobStore(redis_url, keys, settings.queue_limits())
        self.fleet = Fleet(self.jobs)

    @property
    def name(self) -> str:
        """What requests call it."""
        return self.offer.model

    async def open(self) -> None:
        """Start what needs an event loop."""
        await self.jobs.start()

    async def close(self) -> None:
        """Stop; whoever still waits for a job gets Unavailable."""
        await self.fleet.close()
        await self.jobs.close()
