"""Which pictures are drawn in the next step and whose turn it is, without tensors, clocks or I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from models.drawing import Drawing
from models.schedule import StepPlan

ROWS_PER_SLOT = 2  # what a guided step of one picture costs the network
Work = Literal["drawing", "coding"]


@dataclass(eq=False, kw_only=True)
class Row(Drawing):
    """Picture number `image` of a task."""

    task_id: str
    image: int

    @property
    def room(self) -> int:
        """The most network rows that one of the steps to come costs."""
        return ROWS_PER_SLOT if self.step < self._guided_until else 1

    @property
    def cost(self) -> int:
        """Network rows of the next step."""
        return _cost(self.plan)

    @property
    def cost_left(self) -> int:
        """Network rows of all steps to come."""
        return sum(map(_cost, self.plans[self.step :]))

    @cached_property
    def _guided_until(self) -> int:
        return max((k for k, plan in enumerate(self.plans, 1) if plan.guidance_scale != 0), default=0)


def _cost(plan: StepPlan) -> int:
    return ROWS_PER_SLOT if plan.guidance_scale != 0 else 1


class SlotTable:
    """Rows that are drawn together, and rows that wait for room in order of arrival.

    A slot is room for one picture with guidance, two network rows in a step. A picture that has no guided
    step before it takes half a slot, so that no step of the table has more than `2 * slots` network rows.

    A task marked solo shares the table with nobody: a job that was lost before may have killed its worker.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.active: list[Row] = []
        self.waiting: deque[Row] = deque()
        self._solo: set[str] = set()

    @property
    def most_rows(self) -> int:
        """Network rows of the largest step."""
        return ROWS_PER_SLOT * self.slots

    @property
    def taken(self) -> float:
        """Slots, whole and half ones, of the rows that are drawn."""
        return _room(self.active) / ROWS_PER_SLOT

    @property
    def free(self) -> int:
        """Whole slots for which no row is there yet; 0 while a solo task is in the table."""
        if self._solo:
            return 0
        return max(0, self.most_rows - _room((*self.active, *self.waiting))) // ROWS_PER_SLOT

    def add(self, rows: Sequence[Row], *, solo: bool = False) -> None:
        """Queue the rows of one task."""
        if solo and rows:
            self._solo.add(rows[0].task_id)
        self.waiting.extend(rows)

    def admit(self) -> list[Row]:
        """Move waiting rows to where there is room; returns all rows of the next step."""
        room = self.most_rows - _room(self.active)
        while self.waiting and self.waiting[0].room <= room and self._may_join(self.waiting[0]):
            room -= self.waiting[0].room
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


def _room(rows: Sequence[Row]) -> int:
    return sum(row.room for row in rows)


class Shares:
    """Halves the engine's time between drawing and coding while both have work to do.

    Whoever has had less goes first. Time that one did not need is not saved up: after a rest it starts level
    with the other. So over any stretch in which both have work, their shares differ by two rounds at most,
    however long the rounds of either are.
    """

    def __init__(self) -> None:
        self._used: dict[Work, float] = {"drawing": 0.0, "coding": 0.0}
        self._busy: set[Work] = set()

    def choose(self, *, drawing: bool, coding: bool) -> Work | None:
        """Whose turn it is of those that have work; coding's when they are level, since it is short."""
        ready: dict[Work, bool] = {"drawing": drawing, "coding": coding}
        busy = {work for work in ready if ready[work]}
        for work in busy - self._busy:
            self._used[work] = max(self._used.values())
        self._busy = busy
        return min(busy, key=lambda work: (self._used[work], work), default=None)

    def charge(self, work: Work, cost: float) -> None:
        """Note what a round has cost, in any unit that is the same for both."""
        self._used[work] += cost
