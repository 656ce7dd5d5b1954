"""The table of a chaos run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from service.chaos.checker import WARM_S, Verdict
from service.chaos.journal import (
    Accepted,
    Answered,
    Asked,
    Bounds,
    Event,
    Fault,
    Life,
    Memory,
    Opened,
    Recorded,
    Rest,
    Turned,
    only,
)
from service.chaos.recovery import RECOVERY_S

LABELS = {
    "lost": "lost",
    "stuck": "without an end",
    "doubled": "doubled",
    "changed": "changed",
    "mismatched": "told other than recorded",
    "over_limit": "open jobs against the limit",
    "left_over": "left over at rest",
    "falsely_poisoned": "poisoned without poison",
    "groundless": "failed or refused without a cause",
    "expired_early": "expired before the deadline",
    "revived": "cancelled but done",
    "ids_differ": "idempotency mismatches",
    "grown": "memory grown",
    "crossed": "reached another request",
    "slow_to_recover": f"recovered later than {RECOVERY_S:g} s",
    "stolen": "leases stolen back",
}
_SHOWN = 5
_WIDTH = 34


def table(events: Sequence[Event], verdict: Verdict) -> Iterator[str]:
    """The lines of the report."""
    yield from _traffic(events)
    yield _row("faults", str(len(only(events, Fault))))
    for kind, count in sorted(Counter(fault.kind for fault in only(events, Fault)).items()):
        yield _row(f"  {kind}", str(count))
    for name, lines in verdict.found.items():
        yield _row(LABELS[name], str(len(lines)) + ("   VIOLATED" if lines else ""))
        yield from (f"    {line}" for line in lines[:_SHOWN])
    yield from _facts(events, verdict)
    for reason, count in sorted(verdict.excused.items()):
        yield _row(f"not counted: {reason}", str(count))


def _row(name: str, value: str) -> str:
    return f"{name:<{_WIDTH}}  {value}"


def _traffic(events: Sequence[Event]) -> Iterator[str]:
    asked = only(events, Asked)
    yield _row("requests", f"{len(asked)}, of which {sum(one.poison for one in asked)} poison")
    jobs = {event.id for event in only(events, Accepted)} | {event.id for event in only(events, Recorded)}
    yield _row("jobs accepted", str(len(jobs)))
    states = Counter(event.state for event in only(events, Answered))
    yield _row("answers", ", ".join(f"{count} {state}" for state, count in states.most_common()))
    turned = Counter("broken" if event.status == 0 else str(event.status) for event in only(events, Turned))
    yield _row(
        "turned away or broken, tried again", ", ".join(f"{n} x {what}" for what, n in turned.most_common())
    )
    ended = Counter(life.name.split("-")[0] for life in only(events, Life))
    yield _row("processes that ended", ", ".join(f"{count} {name}" for name, count in sorted(ended.items())))


def _facts(events: Sequence[Event], verdict: Verdict) -> Iterator[str]:
    opened = max((event.count for event in only(events, Opened)), default=0)
    bounds = only(events, Bounds)[0]
    yield _row("most open jobs, limit", f"{opened}, {bounds.open_jobs}")
    for rest in only(events, Rest):
        yield _row("at rest: open, entries, pending", f"{rest.open}, {rest.entries}, {rest.pending}")
        grown = (rest.redis_bytes - bounds.redis_bytes) >> 10
        yield _row("Redis at rest", f"{grown:+d} KiB with {rest.kept} results kept")
    yield _row("memory, warm and at the end", ", ".join(_memory(events)))
    measured = f"{verdict.worst_recovery_s:.2f} s, measured after {verdict.recoveries} faults"
    yield _row("worst recovery", measured)


def _memory(events: Sequence[Event]) -> Iterator[str]:
    """For each kind of process, its longest life, from when it was warm."""
    lives: dict[tuple[str, int], list[int]] = {}
    for sample in only(events, Memory):
        lives.setdefault((sample.name.split("-")[0], sample.pid), []).append(sample.bytes)
    for kind in sorted({kind for kind, _ in lives}):
        longest = max((samples for (name, _), samples in lives.items() if name == kind), key=len)
        first = longest[min(len(longest) - 1, int(WARM_S))]
        yield f"{kind} {first >> 20} to {longest[-1] >> 20} MiB"


def violations(verdict: Verdict) -> str:
    """The rules that were broken, and how often."""
    broken = (f"{LABELS[name]} {len(lines)}" for name, lines in verdict.found.items() if lines)
    return ", ".join(broken) or "nothing"
