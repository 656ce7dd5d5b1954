"""An open loop: requests that come when they come, however the server fares, and what became of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

STEPS = (8, 16, 32, 64)


@dataclass(frozen=True)
class Arrival:
    """Request number `number`: one picture with `steps` steps, wanted `at_s` seconds after the start."""

    number: int
    at_s: float
    steps: int


@dataclass
class Outcome:
    """Latency in seconds of each finished request, and when the last one finished."""

    latencies: dict[Arrival, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Pictures per second."""
        return len(self.latencies) / self.seconds

    def quantile_s(self, share: float) -> float:
        """The latency that `share` of the requests stayed within."""
        return _quantile(list(self.latencies.values()), share)

    def slowdown(self, share: float, alone_s: dict[int, float]) -> float:
        """The same, in multiples of what a request of its step count takes alone."""
        return _quantile([latency / alone_s[one.steps] for one, latency in self.latencies.items()], share)

    def goodput(self, limit: float, alone_s: dict[int, float]) -> float:
        """Pictures per second that took at most `limit` times as long as alone."""
        good = sum(latency <= limit * alone_s[one.steps] for one, latency in self.latencies.items())
        return good / self.seconds


def poisson(count: int, rate: float, seed: int = 0) -> list[Arrival]:
    """`count` requests at `rate` per second on average, their step counts drawn alike often from STEPS."""
    clock, numbers = 0.0, random.Random(seed)
    arrivals = []
    for number in range(count):
        clock += numbers.expovariate(rate)
        arrivals.append(Arrival(number, clock, numbers.choice(STEPS)))
    return arrivals


def all_at_once(count: int) -> list[Arrival]:
    """`count` requests at the start, the step counts in turns."""
    return [Arrival(number, 0.0, STEPS[number % len(STEPS)]) for number in range(count)]


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
