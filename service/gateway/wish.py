"""What a request wants of the queue."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from service.gateway.caller import Caller
from service.gateway.repeat import Repeat
from service.jobs.job import NewJob, Priority
from service.jobs.payloads import GenerateJob, JobPayload
from service.jobs.speed import cost_of


@dataclass(frozen=True)
class Wish:
    """A job to be done, and how."""

    payload: JobPayload = field(repr=False)
    priority: Priority = "interactive"
    repeat: Repeat | None = None
    keep: bool = False
    """The result is fetched later."""
    charged: bool = True
    """Its pictures count among the caller's images of the day."""

    def job(self, caller: Caller, deadline_ms: int) -> NewJob:
        """The job of `caller`, with an id of its own, to be done in `deadline_ms` from now."""
        payload, repeat = self.payload, self.repeat
        return NewJob(
            id=uuid.uuid4().hex,
            kind=payload.kind,
            payload=payload.pack(),
            fingerprint=repeat.fingerprint if repeat else "",
            rows=payload.rows,
            cost=cost_of(payload),
            tenant=caller.tenant,
            tenant_jobs=caller.open_jobs,
            priority=self.priority,
            deadline_ms=deadline_ms,
            idempotency_key=repeat.key if repeat else None,
            keep_result=self.keep or repeat is not None,
            wants_events=isinstance(payload, GenerateJob) and payload.events,
        )
