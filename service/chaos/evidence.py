"""The journal of a chaos run, arranged for the rules, and what Redis was made to lose."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from service.chaos.journal import Accepted, Answered, Asked, Event, Fault, Life, Loss, Recorded, only

RESUBMIT_S = 4.0
"""After Redis came back with less: by then a living gateway has submitted its jobs again."""
TAIL_S = 2.0
"""Before the kill: what is older is not in the bytes that were cut off."""


class Evidence:
    """The journal, arranged for the rules."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self.asked = {event.n: event for event in only(events, Asked)}
        self.accepted = {event.id: event for event in reversed(only(events, Accepted))}
        self.recorded: dict[str, list[Recorded]] = defaultdict(list)
        for record in only(events, Recorded):
            self.recorded[record.id].append(record)
        self.answered: dict[str, list[Answered]] = defaultdict(list)
        for answer in only(events, Answered):
            if answer.id:
                self.answered[answer.id].append(answer)
        self.losses = only(events, Loss)
        self.faults = only(events, Fault)
        self.lives: dict[str, list[Life]] = defaultdict(list)
        for life in only(events, Life):
            self.lives[life.name].append(life)

    def lost_between(self, start: float, end: float) -> bool:
        """Whether Redis lost something known at `start` before `end`."""
        return any(self._may_hit(loss, start, start) and loss.t <= end for loss in self.losses)

    def job_lost(self, accepted: Accepted, by: float) -> bool:
        """Whether Redis lost the job before `by`. It held it at some time between `sent` and `t`."""
        return any(self._may_hit_job(loss, accepted) and loss.t <= by for loss in self.losses)

    def _may_hit_job(self, loss: Loss, accepted: Accepted) -> bool:
        return self._may_hit(loss, accepted.sent, accepted.t)

    @staticmethod
    def _may_hit(loss: Loss, first: float, last: float) -> bool:
        """Whether what Redis learnt between `first` and `last` can be among what it lost."""
        return first <= loss.until and (loss.wiped or last >= loss.t - TAIL_S)

    def faulted_between(self, start: float, end: float) -> bool:
        """Whether there was any fault."""
        return any(fault.t <= end and fault.until >= start for fault in self.faults)

    def gateway_ended(self, accepted: Accepted, by: float) -> bool:
        """Whether the gateway that accepted the job ended before `by`."""
        return any(accepted.sent <= life.until <= by for life in self.lives[accepted.gateway])

    def orphaned(self, accepted: Accepted) -> bool:
        """Whether Redis lost the job when nobody was left to submit it again."""
        return any(
            self._may_hit_job(loss, accepted) and self.gateway_ended(accepted, loss.until + RESUBMIT_S)
            for loss in self.losses
        )

    def due_when_lost(self, accepted: Accepted) -> bool:
        """Whether Redis lost the job and its deadline passed before it could be submitted again."""
        due = accepted.sent + self.asked[accepted.n].deadline_ms / 1000
        return any(
            self._may_hit_job(loss, accepted) and due < loss.until + RESUBMIT_S for loss in self.losses
        )

    def result_wiped(self, job_id: str, before: float) -> bool:
        """Whether the job had ended when Redis lost its result."""
        ends = [event.t for event in (*self.recorded[job_id], *self.answered[job_id]) if event.t < before]
        return any(self.lost_between(end, before) for end in ends)

    def name(self, job_id: str) -> str:
        """A job in words."""
        accepted = self.accepted.get(job_id)
        action = self.asked[accepted.n].action if accepted else "unknown request"
        return f"{job_id[:8]} ({action})"
