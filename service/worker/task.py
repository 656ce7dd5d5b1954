"""A job inside the engine, and who hears how it fares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from models.errors import MaskBitError
from models.runtime.base import Integers, Pixels
from service.jobs.job import ClaimedJob
from service.jobs.payloads import JobPayload
from service.worker.scheduler import Row

Stage = Literal["step", "encode", "decode", "finish"]
Outcome = Literal["done", "failed", "dropped", "released"]


@dataclass(eq=False)
class Task:
    """One job inside the engine: the single mutable record of a request."""

    id: str
    request: JobPayload
    solo: bool = False
    deadline_s: float = float("inf")
    """By the engine's clock; what is not done by then leaves before the next step."""
    trace: str = ""
    """W3C traceparent of the request, empty for none."""
    pictures: dict[int, Pixels] = field(default_factory=dict)
    grids: dict[int, Integers] = field(default_factory=dict)
    started_s: float = 0.0

    @property
    def images(self) -> int:
        """Pictures of the job."""
        return self.request.rows


class Listener(Protocol):
    """Where the engine reports; called from the engine's thread, so every method must return quickly."""

    def progressed(self, task: Task, row: Row, preview: Pixels | None) -> None:
        """One step of one picture is done."""

    def completed(self, task: Task) -> None:
        """`task.grids` (and `task.pictures`, but for tokenize) are complete."""

    def failed(self, task: Task, error: MaskBitError) -> None:
        """The task cannot be done."""


class Observer(Protocol):
    """Where tracing listens. Called from any of a worker's threads; every method must return quickly.

    A job is claimed, worked on in stages, together with others, and ended. A batch that was under way when a
    job was dropped is told after its end.
    """

    def claimed(self, job: ClaimedJob) -> None:
        """An attempt at `job` begins here."""

    def worked(self, stage: Stage, tasks: Sequence[Task], rows: int, began_ns: int, ended_ns: int) -> None:
        """One batch of `rows` network rows, pictures or files for `tasks`; times since the epoch."""

    def ended(self, job: ClaimedJob, outcome: Outcome) -> None:
        """This worker is through with `job`; `dropped`: it was cancelled, expired or lost."""


class NoObserver:
    """Observes nothing."""

    def claimed(self, job: ClaimedJob) -> None:
        """Nothing."""

    def worked(self, stage: Stage, tasks: Sequence[Task], rows: int, began_ns: int, ended_ns: int) -> None:
        """Nothing."""

    def ended(self, job: ClaimedJob, outcome: Outcome) -> None:
        """Nothing."""
