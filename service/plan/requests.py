"""What arrives: requests at random times (Poisson), and the jobs that gateways make of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from models.sampling_config import SamplingConfig
from models.schedule import StepPlan, forward_passes, plan_steps
from service.jobs.payloads import GenerateJob, TokenizeJob


@dataclass(frozen=True)
class Request:
    """One request at `at_s` seconds after the start: pictures of `steps` steps, or with 0 to be tokenized."""

    number: int
    at_s: float
    images: int = 1
    steps: int = 0

    @property
    def generate(self) -> bool:
        """Whether pictures are to be drawn."""
        return self.steps > 0


def poisson(
    count: int, rate: float, *, images: int, steps: int, tokenize_rate: float, seed: int
) -> list[Request]:
    """`count` requests that draw, `rate` per second on average, and those that tokenize meanwhile."""
    numbers = random.Random(seed)
    requests, clock = [], 0.0
    for number in range(count):
        clock += numbers.expovariate(rate)
        requests.append(Request(number, clock, images, steps))
    # A sequence of their own: the same pictures are drawn at the same times with and without them.
    requests += [Request(count + k, at_s) for k, at_s in enumerate(_times(tokenize_rate, clock, seed + 1))]
    return sorted(requests, key=lambda one: one.at_s)


def _times(rate: float, until_s: float, seed: int) -> Iterator[float]:
    numbers, clock = random.Random(seed), 0.0
    while rate and (clock := clock + numbers.expovariate(rate)) < until_s:
        yield clock


@cache
def sampling_of(base: SamplingConfig, steps: int) -> SamplingConfig:
    """`base` with so many steps."""
    return replace(base, steps=steps)


@cache
def plans_of(sampling: SamplingConfig) -> tuple[StepPlan, ...]:
    """The steps of one picture; how many groups it has does not matter to a scheduler."""
    return plan_steps(sampling, sampling.steps)


@cache
def payload_of(base: SamplingConfig, images: int, steps: int) -> GenerateJob | TokenizeJob:
    """What a gateway queues for such a request."""
    if not steps:
        return TokenizeJob(images, 1, b"")
    return GenerateJob((0,) * images, (0,) * images, sampling_of(base, steps), "png")


@cache
def rows_of_picture(sampling: SamplingConfig) -> int:
    """Network rows that one picture costs."""
    return forward_passes(sampling).total
