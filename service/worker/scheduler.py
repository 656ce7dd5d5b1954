"""Which pictures are drawn in the next step: a table of slots, without tensors, clocks or I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from models.drawing import Drawing


@dataclass(eq=False, kw_only=True)
class Row(Drawing):
    """Picture number `image` of a task."""

    task_id: str
    image: int


class SlotTable:
    """Rows that are drawn together, at most `slots`, and rows that wait for a slot in order of arrival.

    A task marked solo shares the table with nobody: a job that was lost before may have killed its worker.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.active: list[Row] = []
        self.waiting: deque[Row] = deque()
        self._solo: set[str] = set()

    @property
    def free(self) -> int:
        """Slots for which no row is there yet; 0 while a solo task is in the table."""
        if self._solo:
            return 0
        return max(0, self.slots - len(self.active) - len(self.waiting))

    def add(self, rows: Sequence[Row], *, solo: bool = False) -> None:
        """Queue the rows of one task."""
        if solo and rows:
            self._solo.add(rows[0].task_id)
        self.waiting.extend(rows)

    def admit(self) -> list[Row]:
        """Move waiting rows into free slots; returns all rows of the next step."""
        while self.waiting and len(self.active) < self.slots and self._may_join(self.waiting[0]):
            self.active.append(self.waiting.popleft())
        return self.active

    def _may_join(self, row: Row) -> bool:
        present = {other.task_id for other in self.active}
        if row.task_id in self._solo:
            return present <= {row.task_id}
        return not present & self._solo

    def remove(self, task_id: str) -> list[Row]:
        """Drop all rows of a task, wherever they are; returns them."""
        gone = [row for row in (*self.active, *self.waiting) if row.task_id == task_id]
        self.active = [row for row in self.active if row.task_id != task_id]
        self.waiting = deque(row for row in self.waiting if row.task_id != task_id)
        self._solo.discard(task_id)
        return gone

    def take_finished(self) -> list[Row]:
        """Remove and return the rows whose last step is done."""
        finished = [row for row in self.active if row.finished]
        if finished:
            self.active = [row for row in self.active if not row.finished]
            left = {row.task_id for row in (*self.active, *self.waiting)}
            self._solo &= left
        return finished
