"""How soon jobs are done again after a fault."""

from __future__ import annotations

from dataclasses import dataclass

from service.chaos.evidence import Evidence
from service.chaos.journal import DONE, Fault, Opened, Recorded, only

RECOVERY_S = 2.0
"""The longest that is allowed."""


@dataclass(frozen=True)
class Recovery:
    """How long it took from the end of a fault to the next job that was done."""

    fault: str
    seconds: float


def recoveries(seen: Evidence) -> list[Recovery]:
    """For each fault, the time from its end, or from the first open job after it, to the next job done.

    Left out when another fault hit within the time allowed: it is measured at the end of that one.
    """
    faults = only(seen.events, Fault)
    done = [event.t for event in only(seen.events, Recorded) if event.state == DONE]
    waiting = [event.t for event in only(seen.events, Opened) if event.count]
    found = []
    for fault in faults:
        start = next((t for t in waiting if t >= fault.until), None)
        end = next((t for t in done if start is not None and t >= start), None)
        if start is None or end is None:
            continue
        others = (other for other in faults if other is not fault and other.until > fault.until)
        if end - start <= RECOVERY_S or not any(other.t < start + RECOVERY_S for other in others):
            found.append(Recovery(f"{fault.kind} of {fault.target}", end - start))
    return found
