"""What travels through the queue: a new job, a claimed job, the view of a job, and the limits of it all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Kind = Literal["generate", "tokenize", "detokenize"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Priority = Literal["interactive", "bulk"]

QUEUED = "Q"
RUNNING = "R"
DONE = "D"
ERROR = "E"
CANCELLED = "C"
EXPIRED = "X"
TERMINAL = frozenset({DONE, ERROR, CANCELLED, EXPIRED})


@dataclass(frozen=True)
class QueueLimits:
    """Bounds of one queue; every process of a deployment should be given the same."""

    open_jobs: int = 1000
    """Accepted jobs that are not yet terminal."""
    tenant_jobs: int = 1000
    """The same for one tenant."""
    results: int = 10_000
    """Open jobs and kept results together."""
    payload_bytes: int = 4 << 20
    result_bytes: int = 32 << 20
    result_ttl_s: float = 300.0
    """How long a result is kept."""
    lease_s: float = 15.0
    """A running job whose worker has been silent for so long is given to another."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")


@dataclass(frozen=True)
class NewJob:
    """A job to submit. The gateway mints `id`, so that submitting twice is the same as once."""

    id: str
    kind: Kind
    payload: bytes
    fingerprint: str
    """Digest of the request; a repeated idempotency key must come with the same one."""
    rows: int = 1
    """Images in the job."""
    tenant: str = "public"
    tenant_jobs: int | None = None
    """This tenant's own bound in place of `QueueLimits.tenant_jobs`."""
    priority: Priority = "interactive"
    deadline_ms: int = 60_000
    """Milliseconds from now after which nobody wants the result."""
    idempotency_key: str | None = None
    keep_result: bool = True
    """False lets `JobStore.forget` drop the result before its time."""
    wants_events: bool = False
    """Whether the worker should publish progress."""
    cost: int = 1
    """Rows that the job costs the network: forward passes of all its pictures; pictures, for the codec."""
    trace: str = ""
    """W3C traceparent of the request, empty for none."""

    def __post_init__(self) -> None:
        if not self.id or not self.tenant:
            raise ValueError(f"id and tenant must be non-empty, got {self.id!r} and {self.tenant!r}")
        for name in ("rows", "cost", "deadline_ms"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class ClaimedJob:
    """One attempt at a job, held by one worker."""

    id: str
    kind: str
    queue: str
    """Name of the stream it came from."""
    entry_id: str
    attempt: int
    solo: bool
    """Run alone: an earlier attempt was lost, perhaps because this job kills its worker."""
    payload: bytes
    rows: int
    deadline_ms: int
    """Absolute, by the clock of Redis."""
    deadline_s: float
    """The same by this process' monotonic clock, late by the time that the answer took."""
    wants_events: bool
    trace: str
    """W3C traceparent of the request, empty for none."""
    age_ms: int
    """Since it was accepted, when this attempt began."""


@dataclass(frozen=True)
class Ending:
    """How an attempt ended: with a result or, if `error_code` is set, an error."""

    job: ClaimedJob
    result: bytes = b""
    error_code: str = ""
    error_message: str = ""


@dataclass(frozen=True)
class JobView:
    """A job as its submitter sees it. Times are ms since the epoch by the clock of Redis, 0 if not yet."""

    id: str
    kind: str
    state: str
    tenant: str
    position: int | None
    """Jobs ahead of it in its queue, of which 100 are counted; None unless it is queued."""
    result: bytes | None
    error_code: str | None
    error_message: str | None
    created_ms: int
    started_ms: int
    finished_ms: int
    attempts: int
    rows: int
    """Images in the job; like its cost 0 unless it is queued."""
    cost: int
    """Rows that it costs the network."""

    @property
    def terminal(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in TERMINAL

    @classmethod
    def from_fields(cls, job_id: str, fields: Mapping[str, Any], position: int = -1) -> "JobView":
        """From the raw fields of a job hash or an inbox note; a position of -1 is none."""

        def text(name: str) -> str | None:
            value = fields.get(name)
            return value.decode() if value else None

        def number(name: str) -> int:
            return int(fields.get(name) or 0)

        return cls(
            id=job_id,
            kind=text("kind") or "",
            state=text("state") or "",
            tenant=text("tenant") or "",
            position=None if position < 0 else position,
            result=fields.get("result"),
            error_code=text("error_code"),
            error_message=text("error_message"),
            created_ms=number("created"),
            started_ms=number("started"),
            finished_ms=number("finished"),
            attempts=number("attempts"),
            rows=number("rows"),
            cost=number("cost"),
        )


@dataclass(frozen=True)
class QueueDepth:
    """One stream: jobs that wait, jobs that run, seconds since the oldest of them was queued (0 if none)."""

    waiting: int
    running: int
    oldest_age_s: float


@dataclass(frozen=True)
class Depth:
    """All streams by short name (`interactive`, `bulk`, `codec`), open jobs, kept results, dead letters."""

    queues: dict[str, QueueDepth]
    open: int
    results: int
    dead: int
