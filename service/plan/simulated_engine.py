"""The turns of `service.worker.engine.Engine` without a network: its scheduler, with times from a table.

Slot table, codec queue and the halves of drawing and coding are the worker's own; only the calls between are
replaced by the seconds that they take. `tests/test_plan_engine.py` holds it to the decisions of the engine.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from models.schedule import StepPlan
from service.jobs.payloads import GenerateJob
from service.plan.step_times import StepTimes
from service.worker.codec import CODEC_IMAGES, CodecQueue
from service.worker.pace import Pace
from service.worker.scheduler import Row, Shares, SlotTable, Work
from service.worker.task import Task

# The schedule looks at no tokens.
_NO_TOKENS = np.zeros((0, 0), dtype=np.int64)


@dataclass(eq=False)
class Turn:
    """One round of an engine: a call of `size` rows or pictures, padded, then perhaps `decoding_s` more."""

    work: Work
    began_s: float
    call_s: float
    size: int
    rows: Sequence[Row]
    tasks: Sequence[Task]
    decoding_s: float = 0.0


class SimulatedEngine:
    """`submit` at any time; then `begin`, `called` when the call is over, `ended` after the decoding.

    `plans`: the steps of a picture of a generate task. `clock` tells seconds.
    """

    def __init__(
        self,
        times: StepTimes,
        slots: int,
        plans: Callable[[Task], Sequence[StepPlan]],
        clock: Callable[[], float],
    ) -> None:
        self.times = times
        self.busy_s = 0.0
        self.calls = 0
        self.pictures_stepped = 0
        self._plans = plans
        self._clock = clock
        self._table = SlotTable(slots)
        self._codec = CodecQueue()
        self._shares = Shares()
        self._mail: deque[Task] = deque()
        self._tasks: dict[str, Task] = {}
        self._drawn: Counter[str] = Counter()
        self._finished: list[Row] = []
        self._step_pace = Pace(self._table.most_rows, clock)
        self._codec_pace = Pace(CODEC_IMAGES, clock)

    def submit(self, task: Task) -> None:
        """Hand over a task for the next turn."""
        self._mail.append(task)

    def free_slots(self) -> int:
        """As of the engine."""
        arriving = sum(task.images for task in self._mail if isinstance(task.request, GenerateJob))
        return max(0, self._table.free - arriving)

    def free_codec(self) -> int:
        """As of the engine."""
        arriving = sum(task.images for task in self._mail if not isinstance(task.request, GenerateJob))
        return max(0, CODEC_IMAGES - self._codec.images - arriving)

    def begin(self) -> tuple[Turn | None, list[Task]]:
        """The turn that begins now, None without work, and the tasks whose deadline has passed."""
        rows, late = self._schedule()
        work = self._shares.choose(drawing=bool(rows), coding=self._codec.ready(alone=not rows))
        if work is None:
            return None, late
        now = self._clock()
        if work == "drawing":
            cost = sum(row.cost for row in rows)
            turn = Turn(work, now, self.times.step(cost), self._padded(cost), list(rows), ())
            self.calls += 1
            self.pictures_stepped += len(rows)
        else:
            batch = self._codec.take()
            images = sum(task.images for task in batch)
            turn = Turn(work, now, self.times.encode(images), self._padded(images), (), batch)
        return turn, late

    def _padded(self, size: int) -> int:
        return max(size, min((one for one in self.times.buckets if one >= size), default=size))

    def _schedule(self) -> tuple[Sequence[Row], list[Task]]:
        while self._mail:
            task = self._mail.popleft()
            self._tasks[task.id] = task
            if isinstance(task.request, GenerateJob):
                self._table.add(self._rows_of(task))
            else:
                self._codec.add(task)
        now = self._clock()
        late = [task for task in self._tasks.values() if task.deadline_s <= now]
        for task in late:
            self._remove(task)
        return self._table.admit(), late

    def _rows_of(self, task: Task) -> list[Row]:
        plans = self._plans(task)
        return [
            Row(label=0, seed=0, plans=plans, tokens=_NO_TOKENS, task_id=task.id, image=image)
            for image in range(task.images)
        ]

    def _remove(self, task: Task) -> None:
        del self._tasks[task.id]
        self._codec.remove(task.id)
        self._table.remove(task.id)
        self._drawn.pop(task.id, None)

    def called(self, turn: Turn) -> float:
        """The call of `turn` is over; seconds of decoding that follow, 0 for none."""
        self.busy_s += turn.call_s
        if turn.work == "coding":
            self._codec_pace.note(turn.size, turn.call_s)
            return 0.0
        self._step_pace.note(turn.size, turn.call_s)
        for row in turn.rows:
            row.step += 1
        self._finished = self._table.take_finished()
        if self._finished:
            turn.decoding_s = self.times.decode(len(self._finished))
            self.busy_s += turn.decoding_s
        return turn.decoding_s

    def ended(self, turn: Turn) -> list[Task]:
        """The turn is over; the tasks that it completed."""
        self._shares.charge(turn.work, self._clock() - turn.began_s)
        if self._finished:
            self._codec_pace.note(self._padded(len(self._finished)), turn.decoding_s)
        done = list(turn.tasks)
        for row in self._finished:
            self._drawn[row.task_id] += 1
            task = self._tasks[row.task_id]
            if self._drawn[row.task_id] == task.images:
                done.append(task)
        self._finished = []
        for task in done:
            del self._tasks[task.id]
            self._drawn.pop(task.id, None)
        return done

    def announcement(self) -> dict[str, float | None]:
        """What a worker says about itself, see `service.jobs.speed`."""
        return {
            "slots": self._table.slots,
            "rows_per_s": self._step_pace.per_s,
            "step_s": self._step_pace.call_s,
            "images_per_s": self._codec_pace.per_s,
            "codec_s": self._codec_pace.call_s,
            "codec_images": CODEC_IMAGES,
        }
