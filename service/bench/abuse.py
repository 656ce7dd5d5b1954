"""`maskbit bench abuse`: what hostile clients cost a good one.

One client asks for no-op jobs on a connection that it keeps, by turns alone and while an attack runs in a
process of its own.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from models.bench import hardware
from models.errors import ConfigError
from service.bench.attacker import ATTACKS
from service.bench.client import Sample, Target, closed_loop
from service.bench.running import RunningService, running_service
from service.bench.service import JOB

WANTED = 2.0
_WARM_UP_S = 1.0
# The first answers of slow readers are drawn, and 500 connections are made, before the clock starts.
_SETTLE_S = 2.0
_END_S = 20.0


@dataclass(frozen=True)
class Pair:
    """What the good client measured alone and during one attack."""

    alone: Sample = field(default_factory=Sample)
    attacked: Sample = field(default_factory=Sample)

    def ratio(self, share: float) -> float:
        """Latency at a quantile, attacked over alone."""
        return self.attacked.quantile_ms(share) / self.alone.quantile_ms(share)


def bench_abuse(*, attacks: Sequence[str], seconds: float, rounds: int) -> Iterator[str]:
    """Lines of the report. Raises Unavailable when an answer to the good client is not 200."""
    import psutil

    yield f"no-op jobs of one client, {rounds} x {seconds:g} s alone and under each attack; {hardware()}"
    head = "".join(f"{share + ' alone':>11}{'attacked':>10}{'ratio':>7}" for share in ("p50", "p99"))
    yield f"{'attack':16}{head}"
    pairs = {name: Pair() for name in attacks}
    with running_service("noop", durability="off") as service:
        target = Target(service.port, "/generate", JOB)
        gateway = psutil.Process(service.pids["gateway"])
        closed_loop(target, clients=1, seconds=_WARM_UP_S)
        before = gateway.memory_info().rss
        for name, pair in pairs.items():
            for _ in range(rounds):
                pair.alone.add(closed_loop(target, clients=1, seconds=seconds))
                with _attacking(name, service):
                    pair.attacked.add(closed_loop(target, clients=1, seconds=seconds))
            yield _line(name, pair)
        grown = (gateway.memory_info().rss - before) / 1e6
    worst = max(pairs, key=lambda name: pairs[name].ratio(0.99))
    ratio = pairs[worst].ratio(0.99)
    verdict = "held" if ratio <= WANTED else "NOT held"
    yield f"worst p99: {ratio:.2f} times that alone ({worst}); at most {WANTED:g} is wanted: {verdict}"
    yield f"the gateway's memory grew by {grown:.1f} MB"
    yield from (f"{name}: {ATTACKS[name].about}" for name in attacks)


def _line(name: str, pair: Pair) -> str:
    cells = [f"{name:16}"]
    for share, width in ((0.5, 8), (0.99, 8)):
        alone, attacked = (sample.quantile_ms(share) for sample in (pair.alone, pair.attacked))
        cells.append(f"{alone:{width}.2f} ms{attacked:{width - 1}.2f} ms{attacked / alone:7.2f}")
    return "".join(cells)


@contextmanager
def _attacking(name: str, service: RunningService) -> Iterator[None]:
    command = [sys.executable, "-m", "service.bench.attacker", name, str(service.port)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        time.sleep(_SETTLE_S)
        yield
    finally:
        process.communicate(timeout=_END_S)


def attacks_named(text: str | None) -> list[str]:
    """The attacks of a list with commas, all without one. Raises ConfigError for an unknown one."""
    names = list(ATTACKS) if text is None else [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in ATTACKS]
    if unknown:
        raise ConfigError(f"there is no attack {unknown[0]!r}; there are {', '.join(ATTACKS)}")
    return names
