"""A plan as lines for people and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from service.plan.part_costs import PartCosts
from service.plan.requests import rows_of_picture, sampling_of
from service.plan.saturation import FULL, Load, commands, lines_of, memory_bytes, parts_of
from service.plan.sizing import Fit, Wish
from service.plan.step_times import StepTimes
from service.settings import Settings

_HOUR_S = 3600


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The answer of `maskbit plan`; `p99_s` is what was asked for, None where the workers were given.

    `alone_s`: one request in an idle service; `full_rate`: requests a second of one worker with full batches.
    """

    wish: Wish
    times: StepTimes
    costs: PartCosts
    fit: Fit
    load: Load
    p99_s: float | None
    alone_s: float
    full_rate: float
    price_per_hour: float | None

    @property
    def full_speed(self) -> float:
        """Share of what the workers can do with full batches."""
        return self.wish.rate / (self.full_rate * self.fit.workers)

    @property
    def most_open(self) -> int:
        """Open jobs at most, of all workers."""
        return math.ceil(self.fit.whole(self.fit.outcome.most_open))

    @property
    def price_per_1000(self) -> float | None:
        """Of pictures, if a worker has a price."""
        if self.price_per_hour is None:
            return None
        pictures = self.wish.rate * self.wish.images * _HOUR_S
        return 1000 * self.price_per_hour * self.fit.workers / pictures

    def lines(self) -> Iterator[str]:
        """For people."""
        wish, fit, outcome = self.wish, self.fit, self.fit.outcome
        passes = rows_of_picture(sampling_of(self.times.sampling, wish.steps))
        goal = f", p99 within {self.p99_s:g} s" if self.p99_s else ""
        yield (
            f"{wish.rate:g} requests/s of {_several(wish.images, 'picture')}, {wish.steps} steps "
            f"({passes} forward passes), {wish.slots} slots{goal}"
        )
        times = self.times
        known = (times.source, times.model, times.runtime, times.hardware)
        yield f"step times: {'; '.join(filter(None, known))}"
        yield f"part costs: {self.costs.source}; {self.costs.hardware}"
        yield ""
        pool = f" (simulated: {fit.pool} of them with their share)" if fit.pool < fit.workers else ""
        yield f"workers          {fit.workers}{pool}"
        yield (
            f"latency          p50 {fit.quantile_s(0.5):.3g} s, p99 {fit.quantile_s(0.99):.3g} s; "
            f"a request alone {self.alone_s:.3g} s"
        )
        if wish.tokenize_rate:
            coding = outcome.quantile_s(0.99, generate=False, after_s=fit.after_s)
            yield f"tokenize         p99 {coding:.3g} s at {wish.tokenize_rate:g}/s"
        yield f"unanswered       {outcome.lost:.2%} ({outcome.turned_away} refused, {outcome.expired} late)"
        steps = f"{outcome.pictures_per_step:.1f} pictures a step"
        speed = f"{self.full_speed:.0%} of the speed with full batches"
        yield f"GPU share        busy {outcome.busy:.0%} of the time, {steps}: {speed}"
        if self.full_speed > 1:
            yield "OVERLOAD         more comes than the workers can do: waiting grows without an end"
        yield from self._redis_lines()
        if self.price_per_1000 is not None:
            price = f"at {self.price_per_hour:g} an hour"
            yield f"cost             {self.price_per_1000:.4g} for 1,000 pictures {price}"
        yield ""
        around = f"{_several(self.load.gateways, 'gateway')}, {_several(self.load.shards, 'shard')}"
        yield f"{around}; share of each limit, planned up to {FULL:.0%}:"
        yield from lines_of(parts_of(self.load, self.costs))

    def _redis_lines(self) -> Iterator[str]:
        sent, inside = commands(self.load, self.costs)
        yield (
            f"Redis            {sent:,.0f} commands/s sent, {inside:,.0f}/s inside scripts; "
            f"{memory_bytes(self.load, self.costs) / 1e6:.1f} MB for jobs and results"
        )
        default = Settings.model_fields["open_jobs"].default
        if self.most_open > default / 2:
            setting = f"MASKBIT_OPEN_JOBS={2 * self.most_open}"
            yield f"open jobs        {self.most_open:,} at once: {setting} ({default} by default)"

    def values(self) -> dict[str, Any]:
        """For programs; times in seconds."""
        fit, outcome = self.fit, self.fit.outcome
        sent, inside = commands(self.load, self.costs)
        return {
            "workers": fit.workers,
            "simulated_workers": fit.pool,
            "p50_s": fit.quantile_s(0.5),
            "p99_s": fit.quantile_s(0.99),
            "alone_s": self.alone_s,
            "unanswered": outcome.lost,
            "busy": outcome.busy,
            "pictures_per_step": outcome.pictures_per_step,
            "of_full_speed": self.full_speed,
            "redis_commands_per_s": sent,
            "redis_commands_inside_per_s": inside,
            "redis_memory_bytes": memory_bytes(self.load, self.costs),
            "open_jobs": self.most_open,
            "price_per_1000_pictures": self.price_per_1000,
            "gateways": self.load.gateways,
            "shards": self.load.shards,
            "parts": {
                part.name: {"share": part.share, "unit": part.unit, "limit": part.limit, "knob": part.knob}
                for part in parts_of(self.load, self.costs)
            },
            "step_times": {"source": self.times.source, "hardware": self.times.hardware},
            "part_costs": {"source": self.costs.source, "hardware": self.costs.hardware},
        }


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
