"""A plan as lines for people and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from service.plan.fit import Fit
from service.plan.load import Load
from service.plan.part_costs import PartCosts
from service.plan.requests import rows_of_picture, sampling_of
from service.plan.saturation import FULL, commands, lines_of, memory_bytes, parts_of
from service.plan.sizing import FULL as WORKERS_FULL
from service.plan.sizing import MOST_FULL, Wish
from service.plan.step_times import StepTimes
from service.settings import Settings

_HOUR_S = 3600


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The answer of `maskbit plan`; `p99_s` is what was asked for, None where the workers were given.

    `alone_s`: one request in an idle service. `full_speed`: share of what workers do with full batches.
    """

    wish: Wish
    times: StepTimes
    costs: PartCosts
    fit: Fit
    load: Load
    p99_s: float | None
    alone_s: float
    full_speed: float
    price_per_hour: float | None

    @property
    def open_jobs(self) -> int:
        """For MASKBIT_OPEN_JOBS, which bounds the queue of a shard: twice as many as there were at most."""
        return 2 * math.ceil(self.fit.most_open / self.load.shards)

    @property
    def price_per_1000(self) -> float | None:
        """Of pictures, if a worker has a price."""
        if self.price_per_hour is None:
            return None
        pictures = self.wish.rate * self.wish.images * _HOUR_S
        return 1000 * self.price_per_hour * self.fit.workers / pictures

    def lines(self) -> Iterator[str]:
        """For people."""
        wish, fit = self.wish, self.fit
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
        yield from self._fit_lines()
        yield from self._redis_lines()
        if self.price_per_1000 is not None:
            price = f"at {self.price_per_hour:g} an hour"
            yield f"cost             {self.price_per_1000:.4g} for 1,000 pictures {price}"
        yield ""
        around = f"{_several(self.load.gateways, 'gateway')}, {_several(self.load.shards, 'shard')}"
        yield f"{around}; share of each limit, planned up to {FULL:.0%}:"
        yield from lines_of(parts_of(self.load, self.costs))

    def _fit_lines(self) -> Iterator[str]:
        wish, fit = self.wish, self.fit
        p99 = fit.quantiles_s(0.99)
        seeds = f"{min(p99):.3g} to {max(p99):.3g} s with seeds {wish.seed} to {wish.seed + len(p99) - 1}"
        yield (
            f"latency          p50 {fit.quantile_s(0.5):.3g} s, p99 {max(p99):.3g} s ({seeds}); "
            f"a request alone {self.alone_s:.3g} s"
        )
        if wish.tokenize_rate:
            yield f"tokenize         {self._tokenize_p99()} at {wish.tokenize_rate:g}/s"
        if wish.drawn < wish.requests:
            drawn = f"{wish.drawn:,} requests that draw with each seed, not {wish.requests:,}"
            yield f"simulated        {drawn}: far more tokenize meanwhile (--requests)"
        refused = sum(outcome.turned_away for outcome in fit.outcomes)
        late = sum(outcome.expired for outcome in fit.outcomes)
        yield f"unanswered       {fit.lost:.2%} ({refused} refused, {late} late)"
        steps = f"{fit.pictures_per_step:.1f} pictures a step"
        speed = f"{self.full_speed:.0%} of the speed with full batches"
        yield f"GPU share        busy {fit.busy:.0%} of the time, {steps}: {speed}"
        if self.full_speed > 1:
            yield "OVERLOAD         more comes than the workers can do: waiting grows without an end"
        elif self.full_speed > WORKERS_FULL:
            planned = f"workers are planned up to {MOST_FULL:.0%}"
            yield f"FULL             over {WORKERS_FULL:.0%} chance decides how long one waits; {planned}"

    def _tokenize_p99(self) -> str:
        seconds = self.fit.tokenize_s(0.99)
        return "none answered" if seconds is None else f"p99 {seconds:.3g} s"

    def _redis_lines(self) -> Iterator[str]:
        sent, inside = commands(self.load, self.costs)
        yield f"Redis            {sent:,.0f} commands/s sent, {inside:,.0f}/s inside scripts"
        passing, kept = (size / 1e6 for size in memory_bytes(self.load, self.costs))
        ttl_s = self.load.result_ttl_s
        stay = (
            f"{kept:,.1f} MB for results that are kept {ttl_s:g} s"
            if self.load.kept
            else f"none is kept (--keep-results: those of background jobs and idempotency keys, {ttl_s:g} s)"
        )
        yield f"Redis memory     {passing:,.1f} MB for jobs that wait and results on their way; {stay}"
        default = Settings.model_fields["open_jobs"].default
        if self.open_jobs > default:
            setting = f"MASKBIT_OPEN_JOBS={self.open_jobs} for each shard ({default} by default)"
            yield f"open jobs        {math.ceil(self.fit.most_open):,} at once: {setting}"

    def values(self) -> dict[str, Any]:
        """For programs; times in seconds."""
        fit = self.fit
        sent, inside = commands(self.load, self.costs)
        passing, kept = memory_bytes(self.load, self.costs)
        return {
            "workers": fit.workers,
            "simulated_workers": fit.pool,
            "p50_s": fit.quantile_s(0.5),
            "p99_s": fit.quantile_s(0.99),
            "p99_s_by_seed": fit.quantiles_s(0.99),
            "tokenize_p99_s": fit.tokenize_s(0.99),
            "simulated_requests": self.wish.drawn,
            "alone_s": self.alone_s,
            "unanswered": fit.lost,
            "busy": fit.busy,
            "pictures_per_step": fit.pictures_per_step,
            "of_full_speed": self.full_speed,
            "redis_commands_per_s": sent,
            "redis_commands_inside_per_s": inside,
            "redis_memory_bytes": passing + kept,
            "redis_memory_bytes_of_kept_results": kept,
            "open_jobs": math.ceil(fit.most_open),
            "open_jobs_setting": self.open_jobs,
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
