"""`maskbit bench soak`: the memory of gateway, worker and Redis over many requests."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from models.bench import hardware
from service.bench.client import Target, post_all
from service.bench.running import running_service

_LOOKS = 20
_WARM = 0.25  # share of the requests after which caches and pools are taken as full
_PARTS = ("gateway", "worker", "redis")
_BODIES: tuple[dict[str, object], ...] = (
    {"class_id": 0, "seed": 1, "steps": 1, "format": "tokens"},
    {"class_id": [1, 2], "seed": 2, "steps": 2, "format": "png"},
    {"class_name": "red_apple", "n": 2, "steps": 4, "format": "webp"},
)


@dataclass(frozen=True)
class Look:
    """Resident memory in MiB of each process after so many requests."""

    requests: int
    rss_mib: Mapping[str, float]


def bench_soak(*, requests: int, clients: int, bundle: str = "fruit") -> Iterator[str]:
    """Lines of the report: a table over time, and the growth of each process after the first quarter."""
    yield f"no-op jobs of several kinds, {clients} clients; {hardware()}"
    with running_service("noop", bundle=bundle) as service:
        targets = [Target(service.port, "/generate", body) for body in _BODIES]
        yield "  requests   seconds  " + "  ".join(f"{part:>7} MiB" for part in _PARTS)
        looks: list[Look] = []
        began = time.perf_counter()
        for done in _marks(requests):
            post_all(targets, clients=clients, requests=done - (looks[-1].requests if looks else 0))
            looks.append(Look(done, {part: _rss_mib(service.pids[part]) for part in _PARTS}))
            sizes = "  ".join(f"{looks[-1].rss_mib[part]:11.1f}" for part in _PARTS)
            yield f"{done:10,d} {time.perf_counter() - began:9.1f}  {sizes}"
    yield from _growth(looks)


def _marks(requests: int) -> list[int]:
    return sorted({-(-requests * look // _LOOKS) for look in range(1, _LOOKS + 1)})


def _rss_mib(pid: int) -> float:
    import psutil

    return float(psutil.Process(pid).memory_info().rss) / (1 << 20)


def _growth(looks: Sequence[Look]) -> Iterator[str]:
    warm = [look for look in looks if look.requests >= _WARM * looks[-1].requests]
    for part in _PARTS:
        first, last = warm[0], warm[-1]
        grown = last.rss_mib[part] - first.rss_mib[part]
        share = grown / first.rss_mib[part]
        yield (
            f"{part:8} {grown:+7.1f} MiB ({share:+.1%}) from request {first.requests:,} to {last.requests:,}"
        )
