"""What the living workers can do in a given time, and what that means for a job.

Every number here is on the safe side: a job is promised nothing, and turned away only when it would be late
even if all went well. So the work counts that waits before it in its own stream, at the best speed that was
measured; what other streams, decoding and half-filled batches cost does not count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.schedule import forward_passes
from service.jobs.job import JobView, NewJob
from service.jobs.payloads import GenerateJob, JobPayload

UNKNOWN_RETRY_S = 10.0
RETRY_S = (1.0, 60.0)  # shortest and longest
_ROWS_PER_CALL = 2  # of one picture: a guided step


@dataclass(frozen=True)
class Forecast:
    """What a job of `cost` rows has before it, see `lua/submit.lua`."""

    run_ms: float = 0.0
    """The shortest time that its own work takes."""
    at_once: float = 0.0
    """Rows of jobs like it that the workers have in hand together: so many are never waited for."""
    rows_per_ms: float = 0.0
    """How fast all workers together get on, 0 for unknown."""

    def wait_ms(self, rows: float) -> float:
        """The shortest time until a job begins that has `rows` before it."""
        return max(0.0, rows - self.at_once) / self.rows_per_ms if self.rows_per_ms else 0.0


@dataclass(frozen=True)
class Rate:
    """One kind of work: network rows of drawing, or pictures of tokenizing and detokenizing."""

    per_s: float = 0.0
    """Of all workers together; 0 as long as one of them has not been measured."""
    best_per_s: float = 0.0
    """Of the fastest worker."""
    call_s: float = 0.0
    """The shortest network call."""
    images: int = 0
    """Pictures that the workers have in hand together."""

    @classmethod
    def of(cls, workers: Sequence[Mapping[str, Any]], per_s: str, call_s: str, images: int) -> Rate:
        """From what workers announce under the names `per_s` and `call_s`."""
        rates = [float(worker.get(per_s) or 0.0) for worker in workers]
        calls = [float(worker.get(call_s) or 0.0) for worker in workers]
        known = all(rates)
        return cls(
            per_s=sum(rates) if known else 0.0,
            best_per_s=max(rates, default=0.0) if known else 0.0,
            call_s=min(calls, default=0.0),
            images=images,
        )

    def forecast(self, cost: int, images: int) -> Forecast:
        """For a job of `cost` rows and `images` pictures."""
        each = cost / images
        run_s = each / _ROWS_PER_CALL * self.call_s
        if self.best_per_s:
            run_s = max(run_s, cost / self.best_per_s)
        return Forecast(1000 * run_s, self.images * each, self.per_s / 1000)


@dataclass(frozen=True)
class Speed:
    """How fast a bundle's workers are; without arguments, nothing is known and nothing turned away."""

    drawing: Rate = Rate()
    coding: Rate = Rate()

    @classmethod
    def of(cls, workers: Sequence[Mapping[str, Any]]) -> Speed:
        """From what the workers announce, see `service.worker.meter`."""
        slots = _ROWS_PER_CALL * sum(int(worker.get("slots") or 0) for worker in workers)
        batches = sum(int(worker.get("codec_images") or 0) for worker in workers)
        return cls(
            drawing=Rate.of(workers, "rows_per_s", "step_s", slots),
            coding=Rate.of(workers, "images_per_s", "codec_s", batches),
        )

    def forecast(self, job: NewJob | JobView) -> Forecast:
        """What `job` has to expect."""
        rate = self.drawing if job.kind == "generate" else self.coding
        return rate.forecast(max(1, job.cost), max(1, job.rows))

    def eta_ms(self, view: JobView) -> int | None:
        """Milliseconds until a queued job may be done, if those before it are like it; None for unknown."""
        forecast = self.forecast(view)
        if view.position is None or not forecast.rows_per_ms:
            return None
        return math.ceil(forecast.wait_ms(view.position * view.cost) + forecast.run_ms)

    def retry_after_s(self, interactive: int, bulk: int, codec: int) -> float:
        """When the rows that wait in each stream may be done: 1 s to 60 s, 10 s when nobody knows."""
        pairs = ((interactive + bulk, self.drawing.per_s), (codec, self.coding.per_s))
        if any(rows and not per_s for rows, per_s in pairs):
            return UNKNOWN_RETRY_S
        shortest, longest = RETRY_S
        return min(longest, max([shortest, *(rows / per_s for rows, per_s in pairs if rows)]))


def cost_of(payload: JobPayload) -> int:
    """Rows that a job costs the network: forward passes of all its pictures; pictures, for the codec."""
    if isinstance(payload, GenerateJob):
        return forward_passes(payload.sampling).total * payload.rows
    return payload.rows
