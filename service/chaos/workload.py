"""The requests of a run, planned with a seed: what each client does, and when."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

POISON_CLASS = 15
"""A picture of this class kills the worker that draws it."""
LONG_MS = 60_000

MIX: Mapping[str, float] = {
    "wait": 0.22,
    "stream": 0.12,
    "poll": 0.24,
    "tokenize": 0.07,
    "detokenize": 0.07,
    "repeat": 0.08,
    "cancel": 0.08,
    "short": 0.05,
    "leave": 0.04,
    "slow": 0.03,
}
"""Share of each action."""


@dataclass(frozen=True)
class Request:
    """One planned request, sent `at_s` after the start of the traffic. `seed` is its own alone."""

    n: int
    at_s: float
    action: str
    seed: int
    class_id: int = 0
    steps: int = 8
    deadline_ms: int = LONG_MS

    @property
    def poison(self) -> bool:
        """Whether it kills its worker."""
        return self.class_id == POISON_CLASS

    @property
    def key(self) -> str:
        """Its Idempotency-Key, if any."""
        return f"chaos-{self.seed}" if self.action == "repeat" else ""

    def drawing(self, **more: Any) -> bytes:
        """The JSON body of `POST /generate`, or of `POST /jobs` with a kind in `more`."""
        fields = {"class_id": self.class_id, "seed": self.seed, "steps": self.steps, "format": "tokens"}
        rest = {"mask_schedule": "linear", "deadline_ms": self.deadline_ms}
        return json.dumps({**fields, **rest, **more}).encode()


@dataclass(frozen=True)
class Burst:
    """A time of overload, in seconds after the start."""

    start_s: float
    seconds: float
    requests: int


def plan_requests(
    count: int,
    seconds: float,
    seed: int,
    *,
    bursts: Sequence[Burst] = (),
    poison: int = 0,
    mix: Mapping[str, float] = MIX,
    steps: Sequence[int] = (2, 4, 8, 8, 16),
) -> list[Request]:
    """`count` requests in order of time, those of `bursts` included; `poison` of them kill workers."""
    rng = random.Random(seed)
    times = [burst.start_s + rng.uniform(0, burst.seconds) for burst in bursts for _ in range(burst.requests)]
    times += [rng.uniform(0, seconds) for _ in range(max(0, count - len(times)))]
    times = sorted(times[:count])
    # Early enough that three attempts, a lease apart, end before the traffic does.
    poisoned = set(rng.sample(range(int(0.7 * count)), poison))
    return [_request(n, at_s, seed, rng, mix, steps, poison=n in poisoned) for n, at_s in enumerate(times)]


def _request(
    n: int,
    at_s: float,
    seed: int,
    rng: random.Random,
    mix: Mapping[str, float],
    steps: Sequence[int],
    *,
    poison: bool,
) -> Request:
    action = rng.choices(list(mix), list(mix.values()))[0]
    own_seed = seed * 1_000_003 + n
    if poison:
        return Request(n, at_s, "poll", own_seed, POISON_CLASS)
    deadline_ms = rng.choice((40, 150, 400, 900)) if action == "short" else LONG_MS
    return Request(n, at_s, action, own_seed, rng.randrange(POISON_CLASS), rng.choice(steps), deadline_ms)
