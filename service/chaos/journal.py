"""What a chaos run saw and did, written outside the system it breaks: one JSON line per event.

Times `t`, `until` and `sent` are seconds of this process's monotonic clock. States are those of the HTTP API.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

DONE, FAILED, CANCELLED, EXPIRED = "done", "failed", "cancelled", "expired"
UNKNOWN = "unknown"
"""The service said 404."""


@dataclass(frozen=True)
class Event:
    """Base of all events."""

    t: float


@dataclass(frozen=True)
class Asked(Event):
    """Request number `n` is first sent; its result is a function of `action`, `seed` and `steps`."""

    n: int
    action: str
    seed: int
    steps: int
    deadline_ms: int
    poison: bool = False
    key: str = ""


@dataclass(frozen=True)
class Accepted(Event):
    """A gateway said that it holds job `id`; `kept` if its result stays to be looked at."""

    n: int
    id: str
    sent: float
    gateway: str
    kept: bool


@dataclass(frozen=True)
class Answered(Event):
    """The client was told how the job ended. `crossed` says what belongs to another request, if anything."""

    n: int
    id: str
    sent: float
    state: str
    code: str = ""
    digest: str = ""
    crossed: str = ""


@dataclass(frozen=True)
class Missing(Event):
    """The service knew nothing of an accepted job (404), perhaps for a moment only."""

    n: int
    id: str


@dataclass(frozen=True)
class CancelSaid(Event):
    """The service said that the job is cancelled."""

    n: int
    id: str


@dataclass(frozen=True)
class Turned(Event):
    """A request was turned away (`status`) or its connection broke (status 0)."""

    n: int
    status: int
    code: str


@dataclass(frozen=True)
class GaveUp(Event):
    """The client found no end of its request in the time that any job may take."""

    n: int
    id: str


@dataclass(frozen=True)
class Recorded(Event):
    """A terminal event that Redis held, as the observer read it."""

    id: str
    state: str
    code: str
    digest: str


@dataclass(frozen=True)
class Opened(Event):
    """Open jobs at this moment."""

    count: int


@dataclass(frozen=True)
class Stolen(Event):
    """A worker renewed the lease of a job that belongs to another one."""

    id: str
    worker: str
    owner: str


@dataclass(frozen=True)
class Fault(Event):
    """A fault from `t` until everything it hit was there again."""

    until: float
    kind: str
    target: str


@dataclass(frozen=True)
class Life(Event):
    """A process from its start to its end."""

    until: float
    name: str
    pid: int


@dataclass(frozen=True)
class Loss(Event):
    """Redis came back at `until` with less than it had confirmed at `t`: nothing, or not its last writes."""

    until: float
    wiped: bool


@dataclass(frozen=True)
class Memory(Event):
    """Resident bytes of a process."""

    name: str
    pid: int
    bytes: int


@dataclass(frozen=True)
class Rest(Event):
    """What is left when all traffic has ended."""

    open: int
    entries: int
    pending: int
    tenant_jobs: int
    released: int
    kept: int
    redis_bytes: int


@dataclass(frozen=True)
class Bounds(Event):
    """The first event: what holds for the run. `redis_bytes` of an empty Redis."""

    open_jobs: int
    lease_s: float
    overload: bool
    redis_bytes: int


_KINDS = {kind.__name__: kind for kind in Event.__subclasses__()}
E = TypeVar("E", bound=Event)


def now() -> float:
    """The clock of all events."""
    return time.monotonic()


class Journal:
    """Events in order of writing, also in a file as soon as they are written."""

    def __init__(self, path: Path | None = None) -> None:
        self.events: list[Event] = []
        self._file = path.open("w", encoding="utf-8") if path else None

    def write(self, event: Event) -> None:
        """Add an event."""
        self.events.append(event)
        if self._file is not None:
            self._file.write(json.dumps({"event": type(event).__name__, **asdict(event)}) + "\n")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def read_journal(path: Path) -> list[Event]:
    """The events of a journal's file."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        events.append(_KINDS[fields.pop("event")](**fields))
    return events


def only(events: Iterable[Event], kind: type[E]) -> list[E]:
    """The events of one kind."""
    return [event for event in events if isinstance(event, kind)]
