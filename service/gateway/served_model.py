"""One revision of a model as a gateway serves it: its bounds, its queue, its workers."""

from __future__ import annotations

from models.bundle import Manifest
from models.verification import Verification
from service.gateway.offer import Offer
from service.gateway.verification_file import VerificationFile
from service.jobs.fleet import Fleet
from service.jobs.keys import Keys
from service.jobs.store import JobStore
from service.settings import Settings


class ServedModel:
    """What a request to one revision needs. Redis may be away when it is made and opened."""

    def __init__(
        self,
        manifest: Manifest,
        revision: str,
        created_s: int,
        settings: Settings,
        redis_url: str,
        verification: VerificationFile,
    ) -> None:
        self.manifest = manifest
        self.revision = revision
        self.offer = Offer.of(manifest, revision, created_s, settings)
        self.jobs = JobStore(redis_url, Keys(manifest.name, revision), settings.queue_limits())
        self.fleet = Fleet(self.jobs, manifest.name)
        self._verification = verification

    @property
    def name(self) -> str:
        """What requests call the model."""
        return self.offer.model

    @property
    def verification(self) -> Verification | None:
        """How far this revision's runtimes are from torch fp32, where that was measured."""
        return self._verification.of(self.offer.bundle)

    async def open(self) -> None:
        """Start what needs an event loop."""
        await self.jobs.start()

    async def close(self) -> None:
        """Stop; whoever still waits for a job gets Unavailable."""
        await self.fleet.close()
        await self.jobs.close()
