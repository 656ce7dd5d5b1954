"""The fewest workers that answer in time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean

from models.errors import InputError
from service.plan.fit import Fit
from service.plan.outcome import Outcome
from service.plan.requests import Request, poisson
from service.plan.simulation import Scene, simulate
from service.plan.step_times import StepTimes
from service.worker.codec import CODEC_IMAGES

Tell = Callable[[str], None]
POOL = 8
"""Workers that are simulated at most: more of them, with their share of the load, wait no longer."""
MOST_FULL = 0.8
"""Share of the workers' full speed up to which they are planned."""
FULL = 0.9
"""The same from which on chance decides how long one waits."""
SEEDS = 3
"""Sequences of arrivals, with each of which the goal is met."""
LOST = 0.001  # share of requests without an answer that a plan may have
_FIRST_STEP = 32  # of the fewest that could do, the first step is this part
_LONG_S = 1e6
_MANY = 10**9
_SATURATING = 8  # times the slots
_SATURATIONS = 16
_IDLE = 0.02  # of their full speed
# Requests that tokenize in a sequence: some so many at most, or so many for each that draws.
_TOKENIZED, _TOKENIZED_EACH = 40_000, 10


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

    @property
    def drawn(self) -> int:
        """Requests that draw of a sequence; fewer than `requests` where far more tokenize meanwhile."""
        if not self.tokenize_rate:
            return self.requests
        tokenized = max(_TOKENIZED, _TOKENIZED_EACH * self.requests)
        return min(self.requests, math.ceil(tokenized * self.rate / self.tokenize_rate))

    def of_shard(self, shards: int) -> Wish:
        """The share of one shard, whose workers do the jobs of no other."""
        return replace(self, rate=self.rate / shards, tokenize_rate=self.tokenize_rate / shards)


def alone_s(wish: Wish, times: StepTimes) -> float:
    """Seconds of one request in an idle service."""
    scene = Scene(times=times, workers=1, slots=wish.slots, deadline_s=_LONG_S)
    quiet = poisson(1, 1.0, images=wish.images, steps=wish.steps, tokenize_rate=0.0, seed=wish.seed)
    return simulate(scene, quiet).quantile_s(0.5)


def needed(wish: Wish, times: StepTimes) -> float:
    """Workers that the load keeps busy when all their batches are full."""
    drawing = wish.rate / capacity(wish, times)
    if not wish.tokenize_rate:
        return drawing
    return drawing + wish.tokenize_rate / tokenize_capacity(times)


def tokenize_capacity(times: StepTimes) -> float:
    """Pictures a second that one worker tokenizes in full batches."""
    return CODEC_IMAGES / times.encode(CODEC_IMAGES)


def capacity(wish: Wish, times: StepTimes) -> float:
    """Requests a second that one worker draws on average while more wait than it has slots."""
    # Which steps meet in a batch stays as it began, and decides by some 5 % how much fits into it: more
    # beginnings tell more than more requests.
    return fmean(_saturated(wish, times, seed) for seed in range(_SATURATIONS))


def _saturated(wish: Wish, times: StepTimes, seed: int) -> float:
    count = max(_SATURATING, _SATURATING * wish.slots // wish.images)
    # Twice as many as a worker can answer whose pictures need no guidance. All at once they would go in step
    # with each other for ever, which is faster, since early steps have fewer rows, and never happens.
    rate = 4 * wish.slots / (wish.images * wish.steps * times.step(2 * wish.slots))
    requests = poisson(count, rate, images=wish.images, steps=wish.steps, tokenize_rate=0.0, seed=seed)
    scene = Scene(times=times, workers=1, slots=wish.slots, deadline_s=_LONG_S, open_jobs=_MANY)
    outcome = simulate(scene, requests)
    ends = sorted(one.at_s + seconds for one, seconds in outcome.latencies.items())
    # In the beginning the slots fill, and in the end they empty.
    first, last = count // 4, 3 * count // 4
    return (last - first) / (ends[last] - ends[first])


def _arrivals(wish: Wish, share: float, seed: int) -> list[Request]:
    return poisson(
        wish.drawn,
        wish.rate * share,
        images=wish.images,
        steps=wish.steps,
        tokenize_rate=wish.tokenize_rate * share,
        seed=seed,
    )


def evaluate(
    wish: Wish, times: StepTimes, workers: int, *, p99_s: float = math.inf, tell: Tell = lambda text: None
) -> Fit:
    """How `workers` fare with SEEDS sequences of arrivals, or up to one with which they miss `p99_s`."""
    pool = min(workers, POOL)
    share = pool / workers
    scene = Scene(times=times, workers=pool, slots=wish.slots, deadline_s=wish.deadline_s, open_jobs=_MANY)
    outcomes: list[Outcome] = []
    for seed in range(wish.seed, wish.seed + SEEDS):
        outcomes.append(simulate(scene, _arrivals(wish, share, seed)))
        fit = Fit(workers, pool, tuple(outcomes))
        lost = f", {fit.lost:.1%} unanswered" if fit.lost > LOST else ""
        tell(f"{workers} workers with seed {seed}: p99 {fit.quantiles_s(0.99)[-1]:.3g} s{lost}")
        if p99_s < math.inf and not _good(fit, p99_s):
            break
    return fit


def size(wish: Wish, times: StepTimes, p99_s: float, *, tell: Tell = lambda text: None) -> Fit:
    """The fewest workers that answer 99 % of each kind within `p99_s`, with each of SEEDS sequences.

    They are at most MOST_FULL of full speed. Raises InputError if no number suffices.
    """
    alone = alone_s(wish, times)
    if alone > p99_s:
        raise InputError(
            f"--p99 is {p99_s:g} s, but one request alone takes {alone:.3g} s; allow more time, take fewer "
            "--steps or pictures, or faster step times"
        )
    busy = needed(wish, times)
    # Many more than those that keep up would have next to nothing to do.
    most = math.ceil(busy / _IDLE)
    low = math.ceil(busy / MOST_FULL) - 1
    return _fewest(lambda workers: evaluate(wish, times, workers, p99_s=p99_s, tell=tell), p99_s, low, most)


def _fewest(try_: Callable[[int], Fit], p99_s: float, low: int, most: int) -> Fit:
    """By larger and larger steps up to `most`, then by halves; `low` are too few."""
    high, fit, step = low, None, max(1, low // _FIRST_STEP)
    while fit is None:
        low, high, step = high, min(most, high + step), 2 * step
        tried = try_(high)
        fit = tried if _good(tried, p99_s) else None
        if fit is None and high == most:
            raise InputError(
                f"--p99 is {p99_s:g} s, but even of {most} workers, with next to nothing to do, it is "
                f"{tried.slowest_s(0.99):.3g} s; allow more time, or take fewer --steps or pictures"
            )
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        tried = try_(middle)
        low, high, fit = (low, middle, tried) if _good(tried, p99_s) else (middle, high, fit)
    return fit


def _good(fit: Fit, p99_s: float) -> bool:
    return fit.slowest_s(0.99) <= p99_s and fit.lost <= LOST
