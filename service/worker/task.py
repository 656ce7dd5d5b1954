"""A job inside the engine, and who hears how it fares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from models.errors import MaskBitError
from models.runtime.base import Integers, Pixels
from service.jobs.payloads import DetokenizeJob, GenerateJob, TokenizeJob
from service.worker.scheduler import Row


@dataclass(eq=False)
class Task:
    """One job inside the engine: the single mutable record of a request."""

    id: str
    request: GenerateJob | TokenizeJob | DetokenizeJob
    solo: bool = False
    pictures: dict[int, Pixels] = field(default_factory=dict)
    grids: dict[int, Integers] = field(default_factory=dict)
    started_s: float = 0.0


class Listener(Protocol):
    """Where the engine reports; called from the engine's thread, so every method must return quickly."""

    def progressed(self, task: Task, row: Row, preview: Pixels | None) -> None:
        """One step of one picture is done."""

    def completed(self, task: Task) -> None:
        """`task.grids` (and `task.pictures`, but for tokenize) are complete."""

    def failed(self, task: Task, error: MaskBitError) -> None:
        """The task cannot be done."""
