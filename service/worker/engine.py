"""The step-level engine: schedule, step, finish.

At every turn it drops what nobody wants any more, admits what waits, and runs either one sampling step over
all active pictures, whatever step each is at, or one batch of tokenize and detokenize work. No picture waits
for another's last step.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np

from models.bundle import Manifest
from models.drawing import advance, grids_of
from models.errors import MaskBitError
from models.runtime.base import Integers, Pixels, Runtime, bucket_for
from service.errors import JobFailed
from service.jobs.payloads import GenerateJob
from service.logs import of_job
from service.telemetry import WorkerMetrics
from service.worker.codec import CODEC_IMAGES, CODERS, CodecQueue, Coder
from service.worker.isolation import is_fatal, isolate
from service.worker.meter import Meter
from service.worker.rows import rows_of
from service.worker.scheduler import Row, Shares, SlotTable
from service.worker.task import Listener, NoObserver, Observer, Task

log = logging.getLogger(__name__)


class Engine:
    """Owns slot table and runtime. `submit` and `drop` may be called from any thread, `turn` from one.

    `clock` tells seconds, by which tasks have deadlines and rounds have a price.
    """

    def __init__(
        self,
        runtime: Runtime,
        manifest: Manifest,
        table: SlotTable,
        listener: Listener,
        metrics: WorkerMetrics,
        *,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runtime = runtime
        self.manifest = manifest
        self.listener = listener
        self.metrics = metrics
        self.turns = 0
        self.longest_turn_s = 0.0
        self.meter = Meter(
            metrics, observer or NoObserver(), clock, most_rows=table.most_rows, most_images=CODEC_IMAGES
        )
        self._clock = clock
        self._table = table
        self._codec = CodecQueue()
        self._shares = Shares()
        self._tasks: dict[str, Task] = {}
        # What other threads want, in their order: a task to start or the id of one to drop.
        self._mail: deque[Task | str] = deque()
        self._wake = threading.Condition()
        self._hurried = False
        metrics.slots_total.set(table.slots)

    # -- any thread ------------------------------------------------------------------------------------------

    def submit(self, task: Task) -> None:
        """Hand over a task."""
        with self._wake:
            self._mail.append(task)
            self._wake.notify_all()

    def drop(self, task_ids: Iterable[str]) -> None:
        """Forget tasks that were cancelled, expired or lost; their rows leave before the next step."""
        with self._wake:
            self._mail.extend(task_ids)
            self._wake.notify_all()

    def free_slots(self) -> int:
        """Pictures, with guidance or not, that can start at the next step; 0 beside a solo task."""
        with self._wake:
            if self._has_solo():
                return 0
            arriving = [task.images for task in self._arriving() if isinstance(task.request, GenerateJob)]
            return max(0, self._table.free - sum(arriving))

    def free_codec(self) -> int:
        """Pictures that can be coded in the next batch; 0 beside a solo task."""
        with self._wake:
            if self._has_solo():
                return 0
            arriving = [task.images for task in self._arriving() if not isinstance(task.request, GenerateJob)]
            return max(0, CODEC_IMAGES - self._codec.images - sum(arriving))

    def _arriving(self) -> list[Task]:
        return [item for item in self._mail if isinstance(item, Task)]

    def _has_solo(self) -> bool:
        return any(task.solo for task in (*self._arriving(), *self._tasks.values()))

    @property
    def idle(self) -> bool:
        """Whether no task is known."""
        with self._wake:
            return not self._arriving() and not self._tasks

    def wait_for(self, capacity: Callable[[], int], timeout_s: float) -> int:
        """What `free_slots` or `free_codec` says, as soon as it is not 0, at the latest after `timeout_s`."""
        with self._wake:
            self._wake.wait_for(lambda: self._hurried or capacity() > 0, timeout_s)
            return capacity()

    def wait_for_work(self, timeout_s: float) -> None:
        """Return when there is something to do, at the latest after `timeout_s`."""
        with self._wake:
            self._wake.wait_for(lambda: bool(self._hurried or self._mail or self._tasks), timeout_s)

    def hurry(self) -> None:
        """Let nobody wait any more, now or later: the worker ends. Safe in a signal handler."""
        self._hurried = True
        with self._wake:
            self._wake.notify_all()

    # -- the engine's thread ---------------------------------------------------------------------------------

    def turn(self) -> None:
        """One round: schedule, then a sampling step or a codec batch."""
        started = self._clock()
        rows = self.schedule()
        work = self._shares.choose(drawing=bool(rows), coding=self._codec.ready(alone=not rows))
        if work == "drawing":
            self.step(rows)
            self.finish()
        elif work == "coding":
            self.run_codec()
        took_s = self._clock() - started
        if work:
            self._shares.charge(work, took_s)
        self.turns += 1
        self.longest_turn_s = max(self.longest_turn_s, took_s)

    def schedule(self) -> list[Row]:
        """Take in arrivals, drop the unwanted and the late, admit; returns the rows of the next step."""
        with self._wake:
            while self._mail:
                item = self._mail.popleft()
                if isinstance(item, Task):
                    self._accept(item)
                else:
                    self._remove(item)
            now = self._clock()
            for task in [task for task in self._tasks.values() if task.deadline_s <= now]:
                self._remove(task.id)
            rows = list(self._table.admit())
            self._wake.notify_all()
        self.metrics.slots_active.set(self._table.taken)
        return rows

    def _accept(self, task: Task) -> None:
        task.started_s = self._clock()
        self._tasks[task.id] = task
        if isinstance(task.request, GenerateJob):
            try:
                self._table.add(rows_of(self.manifest, task), solo=task.solo)
            except MaskBitError as exc:
                self._fail(task, exc)
        else:
            self._codec.add(task)

    def _remove(self, task_id: str) -> None:
        if self._tasks.pop(task_id, None) is None:
            return
        self._codec.remove(task_id)
        rows = self._table.remove(task_id)
        self.metrics.steps_saved.inc(sum(row.steps_left for row in rows))
        self.metrics.rows_saved.inc(sum(row.cost_left for row in rows))

    def _fail(self, task: Task, error: MaskBitError) -> None:
        self._tasks.pop(task.id, None)
        self._table.remove(task.id)
        self.listener.failed(task, error)

    def step(self, rows: Sequence[Row]) -> None:
        """One sampling step of `rows`."""
        for part, drawn in isolate(self._advance, rows, self._is_wanted, self._give_up):
            self._report(part, drawn)

    def _advance(self, rows: Sequence[Row]) -> tuple[Sequence[Row], Integers]:
        network_rows = sum(row.cost for row in rows)
        with self.meter.call("step", self._tasks_of(rows), network_rows, self._bucket(network_rows)):
            drawn = advance(self.runtime, rows)
        self.metrics.step_rows.observe(len(rows))
        return rows, drawn

    def _bucket(self, count: int) -> int:
        return bucket_for(count, self.runtime.buckets)

    def _tasks_of(self, rows: Sequence[Row]) -> list[Task]:
        return [self._tasks[task_id] for task_id in dict.fromkeys(row.task_id for row in rows)]

    def _is_wanted(self, row: Row) -> bool:
        return row.task_id in self._tasks

    def _give_up(self, row: Row, error: Exception) -> None:
        log.error("task %s cannot be drawn", row.task_id, exc_info=error, extra=of_job(row.task_id))
        with self._wake:
            self._fail(self._tasks[row.task_id], JobFailed("drawing this picture failed in the model"))

    def _report(self, rows: Sequence[Row], drawn: Integers) -> None:
        followed = [
            (k, row)
            for k, row in enumerate(rows)
            if self._is_wanted(row) and self._request(row).events and not row.finished
        ]
        shown = [
            k for k, row in followed if (every := self._request(row).preview_every) and row.step % every == 0
        ]
        previews = self._previews([rows[k] for k in shown], drawn[shown]) if shown else {}
        for _, row in followed:
            self.listener.progressed(self._tasks[row.task_id], row, previews.get(row))

    def _previews(self, rows: Sequence[Row], drawn: Integers) -> dict[Row, Pixels]:
        """Pictures of `rows`; a preview is best effort, so its failure costs nobody a picture."""
        try:
            return dict(zip(rows, self._decode(rows, grids_of(self.manifest, drawn)), strict=True))
        except Exception as exc:
            if is_fatal(exc):
                raise
            log.exception("previews were left out")
            return {}

    def _request(self, row: Row) -> GenerateJob:
        request = self._tasks[row.task_id].request
        assert isinstance(request, GenerateJob)
        return request

    def finish(self) -> None:
        """Decode the rows whose last step is done and complete the tasks that have all their pictures."""
        with self._wake:
            rows = self._table.take_finished()
            self._wake.notify_all()
        for row in rows:
            grid = grids_of(self.manifest, row.tokens[None])[0]
            self._tasks[row.task_id].grids[row.image] = grid
        wanted = [row for row in rows if self._request(row).format != "tokens"]
        for part, pictures in isolate(self._draw, wanted, self._is_wanted, self._give_up):
            for row, picture in zip(part, pictures, strict=True):
                if self._is_wanted(row):
                    self._tasks[row.task_id].pictures[row.image] = picture
        done = [row for row in rows if self._is_wanted(row)]
        self.metrics.images.inc(len(done))
        for task in self._tasks_of(done):
            if len(task.grids) == task.images:
                self._complete(task)

    def _draw(self, rows: Sequence[Row]) -> tuple[Sequence[Row], Pixels]:
        return rows, self._decode(rows, grids_of(self.manifest, np.stack([row.tokens for row in rows])))

    def _decode(self, rows: Sequence[Row], grids: Integers) -> Pixels:
        with self.meter.call("decode", self._tasks_of(rows), len(rows), self._bucket(len(rows))):
            return self.runtime.decode(grids)

    def _complete(self, task: Task) -> None:
        with self._wake:
            del self._tasks[task.id]
            self._wake.notify_all()
        self.listener.completed(task)

    def run_codec(self) -> None:
        """One bounded batch of tokenize and detokenize tasks, those of one kind in one network call."""
        with self._wake:
            batch = self._codec.take()
        for coder in CODERS:
            tasks = [task for task in batch if isinstance(task.request, coder.request)]
            isolate(
                partial(self._code, coder), tasks, lambda task: task.id in self._tasks, self._give_up_coding
            )

    def _code(self, coder: Coder, tasks: Sequence[Task]) -> None:
        images = sum(task.images for task in tasks)
        with self.meter.call(coder.stage, tasks, images, self._bucket(images)):
            coder.run(self.runtime, self.manifest, tasks)
        for task in tasks:
            self._complete(task)

    def _give_up_coding(self, task: Task, error: Exception) -> None:
        if not isinstance(error, MaskBitError):
            log.error("task %s cannot be run", task.id, exc_info=error, extra=of_job(task.id))
            error = JobFailed("the model failed on this input")
        with self._wake:
            self._fail(task, error)
