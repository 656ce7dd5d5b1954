"""`maskbit bench service`: what HTTP, queue and worker cost around a runtime that does nothing.

All servers stand ready at the same time and are asked in turns, round after round, by the same client in this
process, so that whatever else the machine does meets all of them alike.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from models.bench import hardware
from service.bench.client import Sample, Target, answer_of, closed_loop
from service.bench.rivals.environment import programs_of
from service.bench.rivals.rival import Rival
from service.bench.rivals.running import running_rival
from service.bench.running import Durability, RunningService, running_service

JOB: dict[str, object] = {"class_id": 0, "seed": 1, "steps": 1, "format": "tokens"}
_WARM_UP_S = 1.0
_FSYNCS = 200


@dataclass
class Contender:
    """A server and what was measured of it, by the number of clients."""

    title: str
    target: Target
    samples: dict[int, Sample] = field(default_factory=dict)


def bench_service(
    *,
    clients: int,
    seconds: float,
    rounds: int,
    durabilities: Sequence[Durability] = ("always",),
    rivals: Sequence[Rival] = (),
    cache_dir: Path,
) -> Iterator[str]:
    """Lines of the report: one client and `clients` of them, `rounds` times `seconds` each, ours and others'.

    Raises Unavailable when a server does not start or answers anything but 200.
    """
    yield f"no-op jobs, answered as tokens; {hardware()}"
    yield f"one fsync of this disk takes {_fsync_ms():.2f} ms"
    programs = [programs_of(rival, cache_dir) for rival in rivals]
    with ExitStack() as stack:
        contenders = []
        for durability in durabilities:
            service = stack.enter_context(running_service("noop", durability=durability))
            contenders.append(_ours(service, durability))
            yield f"{contenders[-1].title} ready after {service.ready_s:.2f} s"
        answer = answer_of(contenders[0].target)
        for rival, folder in zip(rivals, programs, strict=True):
            target = stack.enter_context(running_rival(rival, folder, JOB, answer))
            contenders.append(Contender(rival.title, target))
        _measure(contenders, sorted({1, clients}), seconds, rounds)
    yield from _table(contenders)


def _ours(service: RunningService, durability: Durability) -> Contender:
    return Contender(f"maskbit, fsync {durability}", Target(service.port, "/generate", JOB))


def _measure(contenders: Sequence[Contender], counts: Sequence[int], seconds: float, rounds: int) -> None:
    for contender in contenders:
        closed_loop(contender.target, clients=max(counts), seconds=min(_WARM_UP_S, seconds))
    for turn in range(rounds):
        for count in counts:
            # There and back, so that nobody always comes after the same one.
            for contender in contenders if turn % 2 == 0 else reversed(contenders):
                sample = closed_loop(contender.target, clients=count, seconds=seconds)
                contender.samples.setdefault(count, Sample()).add(sample)


def _table(contenders: Sequence[Contender]) -> Iterator[str]:
    ours = contenders[0]
    for count in ours.samples:
        yield ""
        yield f"{_clients(count):24}   req/s   p50 ms   p99 ms   ours/its req/s   its/our p50"
        for one in contenders:
            sample, base = one.samples[count], ours.samples[count]
            ratios = (
                f"{base.rate / sample.rate:16.2f} {sample.quantile_ms(0.5) / base.quantile_ms(0.5):13.2f}"
            )
            spread = f"{sample.quantile_ms(0.5):8.2f} {sample.quantile_ms(0.99):8.2f}"
            yield f"{one.title:24}{sample.rate:8.0f} {spread} {ratios if one is not ours else ''}".rstrip()


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


def _fsync_ms() -> float:
    """Median time of an fsync where temporary files are, as the append-only file is."""
    with tempfile.TemporaryFile() as file:
        times = []
        for _ in range(_FSYNCS):
            file.write(bytes(512))
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return sorted(times)[_FSYNCS // 2] * 1e3
