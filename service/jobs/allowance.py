"""What a tenant may ask for in a time, counted in Redis for all gateways together."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from service.errors import QuotaExceeded, RateLimited, Unavailable
from service.jobs.keys import ALLOWANCES
from service.jobs.redis_link import AsyncLink

log = logging.getLogger(__name__)

_SCRIPT = "charge"


@dataclass(frozen=True)
class Allowance:
    """Limits of one tenant, None for none. `burst`: requests at once, by default those of a minute."""

    requests_per_minute: int | None = None
    burst: int | None = None
    images_per_day: int | None = None

    @property
    def at_once(self) -> int:
        """Requests that a tenant who was silent may send at once; 0 without a rate."""
        return self.burst or self.requests_per_minute or 0

    @property
    def interval_ms(self) -> float:
        """Milliseconds after which one more request is allowed; 0 without a rate."""
        return 60_000 / self.requests_per_minute if self.requests_per_minute else 0.0


UNLIMITED = Allowance()


@dataclass(frozen=True)
class Balance:
    """Requests that are left now, and seconds until as many as may come at once are."""

    remaining: int
    full_in_s: float


class Allowances:
    """Charges tenants, each in one round trip. A lost answer is asked for again, so it may count twice."""

    def __init__(self, url: str) -> None:
        self._link = AsyncLink(url, (ALLOWANCES,))

    async def close(self) -> None:
        """Drop the connections."""
        await self._link.close()

    async def charge_request(self, tenant: str, allowance: Allowance) -> Balance | None:
        """One more request; None without a rate. Raises RateLimited, Unavailable."""
        if allowance.requests_per_minute is None:
            return None
        verdict, ms, remaining = await self._charge(tenant, allowance, requests=1)
        if verdict != b"OK":
            raise RateLimited(
                f"{allowance.requests_per_minute} requests a minute are allowed, {allowance.at_once} at once",
                retry_after_s=ms / 1000,
            )
        return Balance(remaining, ms / 1000)

    async def charge_images(self, tenant: str, allowance: Allowance, images: int) -> None:
        """So many more images. Raises QuotaExceeded, Unavailable."""
        if allowance.images_per_day is None:
            return
        verdict, ms, left = await self._charge(tenant, allowance, images=images)
        if verdict != b"OK":
            allowed = allowance.images_per_day
            raise QuotaExceeded(
                f"{images} images are asked for; {allowed} a day (UTC) are allowed, {left} are left",
                retry_after_s=ms / 1000,
            )

    async def refund(self, tenant: str, allowance: Allowance, *, requests: int = 0, images: int = 0) -> None:
        """Give back what was charged for nothing, unless Redis is away: too little is allowed then."""
        requests = requests if allowance.requests_per_minute is not None else 0
        images = images if allowance.images_per_day is not None else 0
        if requests or images:
            try:
                await self._charge(tenant, allowance, requests=-requests, images=-images)
            except Unavailable as exc:
                log.info("what was turned away stays charged: %s", exc)

    async def _charge(
        self, tenant: str, allowance: Allowance, *, requests: int = 0, images: int = 0
    ) -> tuple[bytes, int, int]:
        numbers = (requests, allowance.interval_ms, allowance.at_once, images, allowance.images_per_day or 0)
        verdict, ms, left = await self._link.run(_SCRIPT, tenant, *numbers)
        return verdict, ms, left
