"""Which workers are alive, looked up at most once a second however many requests ask."""

import asyncio
import time
from typing import Any

from service.errors import NoWorker, ServiceError, Unavailable
from service.jobs.speed import Speed
from service.jobs.store import JobStore

_FRESH_S = 1.0
_TIMEOUT_S = 2.0
_RETRY_S = 2.0


class Fleet:
    """The living workers of one revision of the model `name`, as they announced themselves."""

    def __init__(self, jobs: JobStore, name: str) -> None:
        self._jobs = jobs
        self._name = name
        self._workers: list[dict[str, Any]] = []
        self._speed = Speed()
        self._error: ServiceError | None = None
        self._looked_s = float("-inf")
        self._look: asyncio.Task[None] | None = None

    async def workers(self, *, fresh: bool = False) -> list[dict[str, Any]]:
        """At least one worker. Raises NoWorker; Unavailable when Redis does not answer.

        `fresh` looks again even if somebody did a moment ago.
        """
        if fresh or time.monotonic() - self._looked_s > _FRESH_S:
            if self._look is None or self._look.done():
                self._look = asyncio.create_task(self._refresh())
            await asyncio.shield(self._look)
        if self._error is not None:
            raise Unavailable(self._error.message, retry_after_s=self._error.retry_after_s)
        if not self._workers:
            raise NoWorker(self._name, retry_after_s=_RETRY_S)
        return self._workers

    async def living(self) -> list[dict[str, Any]]:
        """The workers, if there are any and Redis says so."""
        try:
            return await self.workers()
        except Unavailable:
            return []

    @property
    def speed(self) -> Speed:
        """How fast they are together, by the last look."""
        return self._speed

    async def close(self) -> None:
        """Wait for a look that is under way."""
        if self._look is not None:
            await asyncio.gather(self._look, return_exceptions=True)

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                self._workers = await self._jobs.workers()
            self._speed = Speed.of(self._workers)
            self._error = None
        except TimeoutError:
            self._error = Unavailable("the job queue does not answer in time", retry_after_s=_RETRY_S)
        except ServiceError as exc:
            self._error = exc
        self._looked_s = time.monotonic()
