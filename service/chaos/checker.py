"""Judges a chaos run by its journal alone: the invariants of the job protocol, one function each.

What Redis was made to lose cannot be held against the service. Each rule says what it does not count:

- A job that had ended before Redis came back empty: its result was in Redis alone.
- A job whose deadline passed before it could be submitted again: nobody would have done it.
- A job whose gateway ended between its acceptance and `RESUBMIT_S` after Redis came back with less, when a
  living gateway has submitted it again.
- Two ends of one job, an end after a cancellation, or two ids for one idempotency key: with a loss between.
- With the last bytes of the file cut off, only what happened at most `TAIL_S` before the kill counts as lost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from service.chaos import journal
from service.chaos.evidence import Evidence
from service.chaos.expected import right_digest
from service.chaos.http_client import TIMEOUT_S
from service.chaos.journal import (
    Accepted,
    Answered,
    Asked,
    Bounds,
    CancelSaid,
    Event,
    GaveUp,
    Memory,
    Missing,
    Opened,
    Recorded,
    Rest,
    Stolen,
    Turned,
    only,
)
from service.chaos.recovery import RECOVERY_S, recoveries

GENEROUS_MS = 30_000
"""No outage of a run lasts so long: a job with such a deadline has to be done."""
REFUSED_SHARE = 0.02
GROWTH_BYTES = 32 << 20
WARM_S = 10.0
KEPT_BYTES = 16 << 10
"""Of Redis for each kept result, some of which are pictures."""
REDIS_SLACK_BYTES = 8 << 20


@dataclass
class Verdict:
    """`found`: the violations of each rule, one line each. `excused`: what was not counted, and why."""

    found: dict[str, list[str]] = field(default_factory=dict)
    excused: dict[str, int] = field(default_factory=dict)
    worst_recovery_s: float = 0.0
    recoveries: int = 0

    @property
    def holds(self) -> bool:
        """Whether no invariant was violated."""
        return not any(self.found.values())


class Rules:
    """Each public method is a rule: it yields its violations and counts what it excuses."""

    def __init__(self, evidence: Evidence) -> None:
        self._seen = evidence
        self.excused: dict[str, int] = defaultdict(int)

    def lost(self) -> Iterator[str]:
        """I1: every accepted job comes to an end that its client can see."""
        seen = self._seen
        for missing in only(seen.events, Missing):
            accepted = seen.accepted[missing.id]
            if not seen.job_lost(accepted, missing.t):
                yield f"{seen.name(missing.id)} was unknown though Redis had lost nothing"
        for job_id, accepted in seen.accepted.items():
            states = {answer.state for answer in seen.answered[job_id]}
            generous = seen.asked[accepted.n].deadline_ms >= GENEROUS_MS
            missing_end = accepted.kept and not states - {journal.UNKNOWN}
            if not missing_end and not (generous and journal.EXPIRED in states):
                continue
            last = max((answer.t for answer in seen.answered[job_id]), default=seen.events[-1].t)
            if seen.result_wiped(job_id, last):
                self.excused["jobs that had ended before Redis lost their results"] += 1
            elif seen.orphaned(accepted):
                self.excused["jobs whose gateway ended when Redis lost them"] += 1
            elif seen.due_when_lost(accepted):
                self.excused["jobs whose deadline passed when Redis lost them"] += 1
            else:
                yield f"{seen.name(job_id)}: {', '.join(sorted(states)) or 'no end'}"

    def stuck(self) -> Iterator[str]:
        """I1: no client waits longer than any job may take, and hardly any in vain for being taken in.

        Without a fault each exchange has an answer, though a repeated one might still succeed.
        """
        seen = self._seen
        taken = {accepted.n for accepted in seen.accepted.values()}
        refused = {event.n for event in only(seen.events, GaveUp) if event.n not in taken}
        for event in only(seen.events, GaveUp):
            if event.n in taken:
                yield f"request {event.n} ({seen.asked[event.n].action}) {event.id[:8]}".rstrip()
        for turned in only(seen.events, Turned):
            timed_out = turned.status == 0 and turned.code.startswith("TimeoutError")
            if timed_out and not seen.faulted_between(turned.t - TIMEOUT_S - RECOVERY_S, turned.t):
                yield f"request {turned.n} ({seen.asked[turned.n].action}) had no answer without a fault"
        if len(refused) > REFUSED_SHARE * len(seen.asked):
            yield f"{len(refused)} of {len(seen.asked)} requests were never taken in"
        elif refused:
            self.excused["requests that were turned away until their clients gave up"] += len(refused)

    def doubled(self) -> Iterator[str]:
        """I1: one terminal event for each job."""
        seen = self._seen
        for job_id, records in seen.recorded.items():
            for first, second in pairwise(records):
                if seen.lost_between(first.t, second.t):
                    self.excused["jobs that ended again after Redis had lost their end"] += 1
                else:
                    yield f"{seen.name(job_id)}: {first.state}, then {second.state}"
        for job_id, answers in seen.answered.items():
            for one, other in pairwise(answers):
                changed = one.state != other.state and journal.UNKNOWN not in (one.state, other.state)
                if changed and not seen.lost_between(one.t, other.t):
                    yield f"{seen.name(job_id)}: the client saw {one.state}, then {other.state}"

    def changed(self) -> Iterator[str]:
        """I2: the result is the function of parameters and seed."""
        seen = self._seen
        for answer in only(seen.events, Answered):
            asked = seen.asked[answer.n]
            if answer.state == journal.DONE and answer.digest != self._right(asked) and not answer.crossed:
                yield f"request {answer.n} ({asked.action}): {answer.digest} instead of {self._right(asked)}"
        for job_id, accepted in seen.accepted.items():
            right = self._right(seen.asked[accepted.n])
            for record in seen.recorded[job_id]:
                if record.state == journal.DONE and record.digest != right:
                    yield f"{seen.name(job_id)}: {record.digest} was recorded instead of {right}"

    @staticmethod
    def _right(asked: Asked) -> str:
        return right_digest(asked.action, asked.seed, asked.steps)

    def mismatched(self) -> Iterator[str]:
        """I3: what the client saw is what was recorded."""
        seen = self._seen
        for job_id, answers in seen.answered.items():
            records = seen.recorded[job_id]
            told = {(record.state, record.digest) for record in records}
            for answer in answers:
                if answer.state == journal.UNKNOWN or not records or (answer.state, answer.digest) in told:
                    continue
                if not seen.lost_between(records[0].t, answer.t):
                    yield f"{seen.name(job_id)}: {answer.state} was said, {records[0].state} was recorded"

    def over_limit(self) -> Iterator[str]:
        """I4: open jobs never exceed their limit; an overload reaches it."""
        bounds = only(self._seen.events, Bounds)[0]
        most = max((event.count for event in only(self._seen.events, Opened)), default=0)
        if most > bounds.open_jobs:
            yield f"{most} jobs were open, {bounds.open_jobs} are allowed"
        if bounds.overload and most < bounds.open_jobs:
            yield f"{most} jobs were open at most: the limit {bounds.open_jobs} was never reached"

    def left_over(self) -> Iterator[str]:
        """I5: at rest nothing is left."""
        for rest in only(self._seen.events, Rest):
            left = {
                name: getattr(rest, name)
                for name in ("open", "entries", "pending", "tenant_jobs", "released")
            }
            if any(left.values()):
                yield ", ".join(f"{name} {count}" for name, count in left.items())

    def falsely_poisoned(self) -> Iterator[str]:
        """I6: jobs that kill their worker, and no others, end as poisoned."""
        for answer in only(self._seen.events, Answered):
            asked = self._seen.asked[answer.n]
            if answer.code == "poisoned" and not asked.poison:
                yield f"{self._seen.name(answer.id)} was called poisoned"
            if asked.poison and answer.state == journal.DONE:
                yield f"{self._seen.name(answer.id)} kills its worker and was said to be done"

    def groundless(self) -> Iterator[str]:
        """Only poison fails, only its client cancels a job, and no generous deadline is called too short."""
        for answer in only(self._seen.events, Answered):
            asked = self._seen.asked[answer.n]
            failed = answer.state == journal.FAILED and answer.code != "poisoned"
            cancelled = answer.state == journal.CANCELLED and asked.action != "cancel"
            refused = answer.code == "deadline_unmeetable" and asked.deadline_ms >= GENEROUS_MS
            if failed or cancelled or refused:
                yield f"request {answer.n} ({asked.action}): {answer.state} {answer.code}".rstrip()
        for turned in only(self._seen.events, Turned):
            if turned.code == "internal":
                yield f"request {turned.n} met an internal error"

    def expired_early(self) -> Iterator[str]:
        """I7: no job expires before its deadline."""
        seen = self._seen
        for answer in only(seen.events, Answered):
            accepted = seen.accepted.get(answer.id)
            sent = accepted.sent if accepted else answer.sent
            due = sent + seen.asked[answer.n].deadline_ms / 1000
            if answer.state == journal.EXPIRED and answer.code == "deadline_passed" and answer.t < due:
                yield f"request {answer.n} expired {due - answer.t:.2f} s before its deadline"
        for job_id, accepted in seen.accepted.items():
            due = accepted.sent + seen.asked[accepted.n].deadline_ms / 1000
            for record in seen.recorded[job_id]:
                if record.state == journal.EXPIRED and record.t < due:
                    yield f"{seen.name(job_id)} expired {due - record.t:.2f} s before its deadline"

    def revived(self) -> Iterator[str]:
        """I8: a cancelled job is never done."""
        seen = self._seen
        for cancel in only(seen.events, CancelSaid):
            ends: list[Recorded | Answered] = [*seen.recorded[cancel.id], *seen.answered[cancel.id]]
            for event in ends:
                if event.state == journal.DONE and not seen.lost_between(cancel.t, event.t):
                    yield f"{seen.name(cancel.id)} was done after it had been cancelled"
                    break

    def ids_differ(self) -> Iterator[str]:
        """I9: an idempotency key gives one id."""
        seen = self._seen
        by_key: dict[str, list[Accepted]] = defaultdict(list)
        for accepted in only(seen.events, Accepted):
            if key := seen.asked[accepted.n].key:
                by_key[key].append(accepted)
        for key, group in by_key.items():
            for first, second in pairwise(group):
                if first.id == second.id:
                    continue
                if seen.lost_between(first.t, second.t) or seen.lost_between(first.sent, second.t):
                    self.excused["idempotency keys that Redis had lost"] += 1
                else:
                    yield f"{key} led to {first.id[:8]} and {second.id[:8]}"

    def grown(self) -> Iterator[str]:
        """I10: memory is flat."""
        seen = self._seen
        samples: dict[tuple[str, int], list[Memory]] = defaultdict(list)
        for sample in only(seen.events, Memory):
            samples[sample.name, sample.pid].append(sample)
        for (name, _), own in samples.items():
            warm = [sample for sample in own if sample.t >= own[0].t + WARM_S]
            if name != "redis" and warm and warm[-1].bytes - warm[0].bytes > GROWTH_BYTES:
                yield f"{name} grew by {(warm[-1].bytes - warm[0].bytes) >> 20} MiB"
        empty = only(seen.events, Bounds)[0].redis_bytes
        for rest in only(seen.events, Rest):
            allowed = empty + REDIS_SLACK_BYTES + rest.kept * KEPT_BYTES
            if rest.redis_bytes > allowed:
                kib = rest.redis_bytes >> 10
                yield f"Redis holds {kib} KiB for {rest.kept} results, at most {allowed >> 10}"

    def crossed(self) -> Iterator[str]:
        """I11: no answer reaches another request."""
        seen = self._seen
        owners: dict[str, set[int]] = defaultdict(set)
        for asked in seen.asked.values():
            if asked.action in ("tokenize", "detokenize"):
                owners[self._right(asked)].add(asked.n)
        for answer in only(seen.events, Answered):
            if answer.crossed:
                yield f"request {answer.n} got {answer.crossed}"
            elif answer.digest in owners and answer.n not in owners[answer.digest]:
                yield f"request {answer.n} got the answer of request {min(owners[answer.digest])}"

    def slow_to_recover(self) -> Iterator[str]:
        """I12: consumption goes on within two seconds of the end of a fault."""
        for recovery in recoveries(self._seen):
            if recovery.seconds > RECOVERY_S:
                yield f"{recovery.seconds:.1f} s after {recovery.fault}"

    def stolen(self) -> Iterator[str]:
        """A worker renews no lease of a job that another one took over."""
        for event in only(self._seen.events, Stolen):
            yield f"{event.worker[-8:]} renewed {event.id[:8]} of {event.owner[-8:]}"


RULES = tuple(name for name in vars(Rules) if not name.startswith("_"))


def check(events: Sequence[Event]) -> Verdict:
    """What the journal shows."""
    evidence = Evidence(events)
    rules = Rules(evidence)
    verdict = Verdict()
    for name in RULES:
        rule: Callable[[], Iterator[str]] = getattr(rules, name)
        verdict.found[name] = list(dict.fromkeys(rule()))
    verdict.excused = dict(rules.excused)
    times = [recovery.seconds for recovery in recoveries(evidence)]
    verdict.recoveries, verdict.worst_recovery_s = len(times), max(times, default=0.0)
    return verdict
