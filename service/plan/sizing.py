"""The fewest workers that answer in time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from models.errors import InputError
from service.plan.outcome import Outcome
from service.plan.requests import Request, poisson
from service.plan.simulation import Scene, simulate
from service.plan.step_times import StepTimes

POOL = 8
"""Workers that are simulated at most: more of them, with their share of the load, wait no longer."""
WARM_UP = 0.15  # share of the requests that find the service emptier than it will be
LOST = 0.001  # share of requests without an answer that a plan may have
_GROWTH = 1.25
_LONG_S = 1e6
_MANY = 10**9
_SATURATING = 24  # times the slots
_IDLE = 0.02  # of their full speed


@dataclass(frozen=True, kw_only=True)
class Wish:
    """The load: `rate` requests a second of `images` pictures of `steps` steps, and pictures to tokenize."""

    rate: float
    images: int
    steps: int
    tokenize_rate: float
    slots: int
    deadline_s: float
    requests: int
    seed: int


@dataclass(frozen=True)
class Fit:
    """So many workers and how they fare; `pool` of them were simulated with their share of the load."""

    workers: int
    pool: int
    outcome: Outcome

    @property
    def after_s(self) -> float:
        """When the service was as full as it gets; what came earlier does not count."""
        latest = max((one.at_s for one in self.outcome.latencies), default=0.0)
        return WARM_UP * latest

    def quantile_s(self, share: float) -> float:
        """Of the latency of drawing requests, past the beginning."""
        return self.outcome.quantile_s(share, after_s=self.after_s)

    def whole(self, simulated: float) -> float:
        """A number of the simulated pool for all workers."""
        return simulated * self.workers / self.pool


def alone_s(wish: Wish, times: StepTimes) -> float:
    """Seconds of one request in an idle service."""
    scene = Scene(times=times, workers=1, slots=wish.slots, deadline_s=_LONG_S)
    quiet = poisson(1, 1.0, images=wish.images, steps=wish.steps, tokenize_rate=0.0, seed=wish.seed)
    return simulate(scene, quiet).quantile_s(0.5)


def capacity(wish: Wish, times: StepTimes) -> float:
    """Requests a second that one worker answers while more wait than it has slots."""
    count = max(_SATURATING, _SATURATING * wish.slots // wish.images)
    # Twice as many as a worker can answer whose pictures need no guidance. All at once they would go in step
    # with each other for ever, which is faster, since early steps have fewer rows, and never happens.
    rate = 4 * wish.slots / (wish.images * wish.steps * times.step(2 * wish.slots))
    requests = _arrivals(wish, count, rate, share=rate / wish.rate)
    scene = Scene(times=times, workers=1, slots=wish.slots, deadline_s=_LONG_S, open_jobs=_MANY)
    outcome = simulate(scene, requests)
    ends = sorted(one.at_s + seconds for one, seconds in outcome.latencies.items() if one.generate)
    # In the beginning the slots fill, and in the end they empty.
    first, last = count // 4, 3 * count // 4
    return (last - first) / (ends[last] - ends[first])


def _arrivals(wish: Wish, count: int, rate: float, share: float) -> list[Request]:
    return poisson(
        count,
        rate,
        images=wish.images,
        steps=wish.steps,
        tokenize_rate=wish.tokenize_rate * share,
        seed=wish.seed,
    )


def evaluate(wish: Wish, times: StepTimes, workers: int) -> Fit:
    """How `workers` fare under the load."""
    pool = min(workers, POOL)
    share = pool / workers
    scene = Scene(times=times, workers=pool, slots=wish.slots, deadline_s=wish.deadline_s, open_jobs=_MANY)
    requests = _arrivals(wish, wish.requests, wish.rate * share, share)
    return Fit(workers, pool, simulate(scene, requests))


def size(wish: Wish, times: StepTimes, p99_s: float) -> Fit:
    """The fewest workers with which 99 % are answered within `p99_s`. Raises InputError if none suffice."""
    alone = alone_s(wish, times)
    if alone > p99_s:
        raise InputError(
            f"--p99 is {p99_s:g} s, but one request alone takes {alone:.3g} s; allow more time, take fewer "
            "--steps or pictures, or faster step times"
        )
    # Fewer could not keep up; many more would have next to nothing to do.
    needed = wish.rate / capacity(wish, times)
    most = math.ceil(needed / _IDLE)
    return _fewest(lambda workers: evaluate(wish, times, workers), p99_s, math.ceil(needed) - 1, most)


def _fewest(try_: Callable[[int], Fit], p99_s: float, low: int, most: int) -> Fit:
    """By larger and larger numbers up to `most`, then by halves; `low` are too few."""
    high, fit = low, None
    while fit is None:
        low, high = high, min(most, max(high + 1, math.ceil(high * _GROWTH)))
        tried = try_(high)
        fit = tried if _good(tried, p99_s) else None
        if fit is None and high == most:
            raise InputError(
                f"--p99 is {p99_s:g} s, but even of {most} workers, with next to nothing to do, it is "
                f"{tried.quantile_s(0.99):.3g} s; allow more time, or take fewer --steps or pictures"
            )
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        tried = try_(middle)
        low, high, fit = (low, middle, tried) if _good(tried, p99_s) else (middle, high, fit)
    return fit


def _good(fit: Fit, p99_s: float) -> bool:
    return fit.quantile_s(0.99) <= p99_s and fit.outcome.lost <= LOST
