"""Which faults hit whom and when: a plan from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from service.chaos.entry import LINES
from service.chaos.proxy import Mode

_PROXIED = [mode.value for mode in Mode if mode is not Mode.CLEAN]

KINDS: tuple[str, ...] = (
    *("worker-kill", "worker-stop", "worker-term"),
    *(f"worker-kill-at-{line}" for line in LINES),
    *("gateway-kill", "gateway-stop", "gateway-term"),
    *("redis-kill", "redis-stop", "redis-term", "redis-truncated", "redis-emptied"),
    *("redis-slow-disk", "redis-full-disk"),
    *(f"link-{mode}" for mode in _PROXIED),
    *(f"front-{mode}" for mode in _PROXIED),
    "slow-clients",
    "publish",
    "overload",
)
"""`link` is the way between a process and Redis, `front` the way from the clients to a gateway; `publish`
replaces the bundle."""

OVERLOAD = "overload"
OVERLOAD_S = 1.5


@dataclass(frozen=True)
class PlannedFault:
    """`kind` hits `target`, `at_s` after the start of the traffic. `size` in [0, 1] is how hard."""

    at_s: float
    kind: str
    target: str
    size: float


def plan_faults(
    count: int,
    seconds: float,
    seed: int,
    *,
    gateways: Sequence[str],
    workers: Sequence[str],
    kinds: Sequence[str] = KINDS,
) -> list[PlannedFault]:
    """`count` faults in order of time, spread evenly with some jitter; no kind twice before all came once."""
    rng = random.Random(seed)
    order: list[str] = []
    while len(order) < count:
        order += rng.sample(kinds, len(kinds))
    gap = seconds / (count + 1)
    return [
        PlannedFault(
            at_s=gap * (k + 1 + rng.uniform(-0.4, 0.4)),
            kind=kind,
            target=_target(kind, rng, gateways, workers),
            size=rng.random(),
        )
        for k, kind in enumerate(order[:count])
    ]


def _target(kind: str, rng: random.Random, gateways: Sequence[str], workers: Sequence[str]) -> str:
    family = kind.split("-")[0]
    if family == "worker":
        return rng.choice(list(workers))
    if family in ("gateway", "front", "slow"):
        return rng.choice(list(gateways))
    if family == "link":
        return rng.choice([*gateways, *workers])
    return {OVERLOAD: "clients", "publish": "bundle"}.get(kind, "redis")
