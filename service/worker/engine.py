"""The step-level engine: schedule, step, finish.

At every turn it drops what nobody wants any more, admits what waits, runs one batch of tokenize and
detokenize work, then one sampling step over all active pictures, whatever step each is at. No picture waits
for another's last step.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from models import bits
from models.bundle import Manifest
from models.drawing import advance, generator_of, grids_of
from models.errors import InputError, MaskBitError
from models.runtime.base import Integers, Pixels, Runtime, bucket_for
from service.errors import JobFailed
from service.jobs.payloads import DetokenizeJob, GenerateJob, TokenizeJob
from service.telemetry import WorkerMetrics
from service.worker.scheduler import Row, SlotTable
from service.worker.task import Listener, Task

log = logging.getLogger(__name__)

CODEC_IMAGES = 16  # pictures that are encoded or decoded between two steps


class Engine:
    """Owns slot table and runtime. `submit` and `drop` may be called from any thread, `turn` from one."""

    def __init__(
        self, runtime: Runtime, manifest: Manifest, slots: int, listener: Listener, metrics: WorkerMetrics
    ) -> None:
        self.runtime = runtime
        self.manifest = manifest
        self.listener = listener
        self.metrics = metrics
        self.turns = 0
        self.longest_turn_s = 0.0
        self._table = SlotTable(slots)
        self._codec: deque[Task] = deque()
        self._tasks: dict[str, Task] = {}
        # What other threads want, in their order: a task to start or the id of one to drop.
        self._mail: deque[Task | str] = deque()
        self._wake = threading.Condition()
        metrics.slots_total.set(slots)

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
        """Pictures that can start at the next step; 0 beside a task that must be alone."""
        with self._wake:
            if self._has_solo():
                return 0
            arriving = [task for task in self._arriving() if isinstance(task.request, GenerateJob)]
            return max(0, self._table.free - sum(map(images_of, arriving)))

    def free_codec(self) -> int:
        """Pictures that can be coded between the next two steps; 0 beside a task that must be alone."""
        with self._wake:
            if self._has_solo():
                return 0
            arriving = [task for task in self._arriving() if not isinstance(task.request, GenerateJob)]
            return max(0, CODEC_IMAGES - sum(map(images_of, [*arriving, *self._codec])))

    def _arriving(self) -> list[Task]:
        return [item for item in self._mail if isinstance(item, Task)]

    def _has_solo(self) -> bool:
        return any(task.solo for task in (*self._arriving(), *self._tasks.values()))

    def wait_for(self, capacity: Callable[[], int], timeout_s: float) -> int:
        """What `free_slots` or `free_codec` says, as soon as it is not 0, at the latest after `timeout_s`."""
        with self._wake:
            self._wake.wait_for(lambda: capacity() > 0, timeout_s)
            return capacity()

    @property
    def idle(self) -> bool:
        """Whether no task is known."""
        with self._wake:
            return not self._arriving() and not self._tasks

    def wait_for_work(self, timeout_s: float) -> None:
        """Return when there is something to do, at the latest after `timeout_s`."""
        with self._wake:
            self._wake.wait_for(lambda: bool(self._mail or self._tasks), timeout_s)

    # -- the engine's thread ---------------------------------------------------------------------------------

    def turn(self) -> None:
        """One round: schedule, codec batch, one sampling step, finish."""
        started = time.monotonic()
        rows = self.schedule()
        self.run_codec()
        if rows:
            self.step(rows)
            self.finish()
        self.turns += 1
        self.longest_turn_s = max(self.longest_turn_s, time.monotonic() - started)

    def schedule(self) -> list[Row]:
        """Take in arrivals, drop the unwanted, admit; returns the rows of the next step."""
        with self._wake:
            while self._mail:
                item = self._mail.popleft()
                if isinstance(item, Task):
                    self._accept(item)
                else:
                    self._remove(item)
            rows = list(self._table.admit())
            self._wake.notify_all()
        self.metrics.slots_active.set(len(rows))
        return rows

    def _accept(self, task: Task) -> None:
        task.started_s = time.monotonic()
        self._tasks[task.id] = task
        if isinstance(task.request, GenerateJob):
            try:
                self._table.add(self._rows(task, task.request), solo=task.solo)
            except MaskBitError as exc:
                self._fail(task, exc)
        else:
            self._codec.append(task)

    def _rows(self, task: Task, request: GenerateJob) -> list[Row]:
        config = generator_of(self.manifest)
        return [
            Row.start(config, request.sampling, label, seed, task_id=task.id, image=image)
            for image, (label, seed) in enumerate(zip(request.class_ids, request.seeds, strict=True))
        ]

    def _remove(self, task_id: str) -> None:
        if self._tasks.pop(task_id, None) is None:
            return
        self._codec = deque(task for task in self._codec if task.id != task_id)
        rows = self._table.remove(task_id)
        self.metrics.steps_saved.inc(sum(row.steps_left for row in rows))

    def _fail(self, task: Task, error: MaskBitError) -> None:
        self._tasks.pop(task.id, None)
        self._table.remove(task.id)
        self.listener.failed(task, error)

    def step(self, rows: Sequence[Row]) -> None:
        """One sampling step of `rows`."""
        self._isolating(self._step, rows)

    def _isolating(self, action: Callable[[Sequence[Row]], None], rows: Sequence[Row]) -> None:
        """Run `action`; if it raises, each task is tried by itself, so that only the guilty one fails."""
        try:
            action(rows)
        except Exception as exc:
            if is_fatal(exc):
                raise
            tasks = dict.fromkeys(row.task_id for row in rows)
            if len(tasks) == 1:
                log.exception("task %s cannot be drawn", rows[0].task_id)
                with self._wake:
                    self._fail(
                        self._tasks[rows[0].task_id], JobFailed("drawing this picture failed in the model")
                    )
                return
            for task_id in tasks:
                self._isolating(action, [row for row in rows if row.task_id == task_id])

    def _step(self, rows: Sequence[Row]) -> None:
        network_rows = len(rows) + sum(row.plan.guidance_scale != 0 for row in rows)
        started = time.perf_counter()
        drawn = advance(self.runtime, rows)
        bucket = bucket_for(network_rows, self.runtime.buckets)
        self.metrics.step_seconds.labels(str(bucket)).observe(time.perf_counter() - started)
        self.metrics.step_rows.observe(len(rows))
        self._report(rows, drawn)

    def _report(self, rows: Sequence[Row], drawn: Integers) -> None:
        followed = [(k, row) for k, row in enumerate(rows) if self._request(row).events and not row.finished]
        shown = [
            k for k, row in followed if (every := self._request(row).preview_every) and row.step % every == 0
        ]
        previews = self._previews(shown, drawn) if shown else {}
        for k, row in followed:
            self.listener.progressed(self._tasks[row.task_id], row, previews.get(k))

    def _previews(self, shown: Sequence[int], drawn: Integers) -> dict[int, Pixels]:
        """Pictures of the rows `shown`; a preview is best effort, so its failure costs nobody a picture."""
        try:
            return dict(zip(shown, self._decode(grids_of(self.manifest, drawn[shown])), strict=True))
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
        if rows:
            self._isolating(self._collect, rows)

    def _collect(self, rows: Sequence[Row]) -> None:
        grids = grids_of(self.manifest, np.stack([row.tokens for row in rows]))
        wanted = [k for k, row in enumerate(rows) if self._request(row).format != "tokens"]
        pictures = dict(zip(wanted, self._decode(grids[wanted]), strict=True)) if wanted else {}
        for k, row in enumerate(rows):
            task = self._tasks[row.task_id]
            task.grids[row.image] = grids[k]
            if k in pictures:
                task.pictures[row.image] = pictures[k]
            if len(task.grids) == len(self._request(row).seeds):
                self._complete(task)
        self.metrics.images.inc(len(rows))

    def _complete(self, task: Task) -> None:
        with self._wake:
            del self._tasks[task.id]
            self._wake.notify_all()
        self.listener.completed(task)

    def _decode(self, grids: Integers) -> Pixels:
        with self.metrics.decode_seconds.time():
            return self.runtime.decode(grids)

    def run_codec(self) -> None:
        """One bounded batch of tokenize and detokenize tasks, those of one kind in one network call."""
        with self._wake:
            batch: list[Task] = []
            count = 0
            while self._codec and self._may_code(self._codec[0], batch, count):
                batch.append(self._codec.popleft())
                count += images_of(batch[-1])
        for kind in (TokenizeJob, DetokenizeJob):
            self._run_codec([task for task in batch if type(task.request) is kind])

    def _may_code(self, task: Task, batch: Sequence[Task], count: int) -> bool:
        """Whether `task` may join `batch` of `count` pictures; one that must be alone waits for others."""
        if task.solo:
            return not batch and not self._table.active
        return not batch or (not batch[0].solo and count + images_of(task) <= CODEC_IMAGES)

    def _run_codec(self, tasks: Sequence[Task]) -> None:
        if not tasks:
            return
        try:
            self._code(tasks)
        except Exception as exc:
            if is_fatal(exc):
                raise
            if len(tasks) > 1:
                for task in tasks:
                    self._run_codec([task])
                return
            log.exception("task %s cannot be run", tasks[0].id)
            error = exc if isinstance(exc, MaskBitError) else JobFailed("the model failed on this input")
            with self._wake:
                self._fail(tasks[0], error)

    def _code(self, tasks: Sequence[Task]) -> None:
        counts = [images_of(task) for task in tasks]
        if isinstance(tasks[0].request, TokenizeJob):
            images = np.concatenate([task.request.images() for task in tasks])  # type: ignore[union-attr]
            self._check_size(images)
            with self.metrics.encode_seconds.time():
                grids = self.runtime.encode(images)
            pictures = None
        else:
            grids = np.concatenate([task.request.array() for task in tasks])  # type: ignore[union-attr]
            bits.check_indices(grids, self.manifest.tokenizer.bits)
            pictures = self._decode(grids)
        start = 0
        for task, count in zip(tasks, counts, strict=True):
            task.grids = dict(enumerate(grids[start : start + count]))
            if pictures is not None:
                task.pictures = dict(enumerate(pictures[start : start + count]))
            start += count
            self._complete(task)

    def _check_size(self, images: Pixels) -> None:
        side = self.manifest.image_size
        if images.shape[1] != side:
            raise InputError(f"pictures are {images.shape[1]} pixels wide; this model reads {side}")


def images_of(task: Task) -> int:
    """Pictures of a task."""
    return len(task.request.seeds) if isinstance(task.request, GenerateJob) else task.request.count


def is_fatal(error: BaseException) -> bool:
    """Whether the process cannot go on: a CUDA context is unusable after most of its errors."""
    return "CUDA error" in str(error) or type(error).__name__ in ("AcceleratorError", "MemoryError")
