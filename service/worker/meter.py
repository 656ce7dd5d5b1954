"""Times the network calls of an engine: for metrics, for forecasts, and for whoever traces jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from service.telemetry import WorkerMetrics
from service.worker.pace import Pace
from service.worker.task import Observer, Stage, Task


class Meter:
    """One engine's times. `most_rows` and `most_images` are the sizes of the largest step and codec batch."""

    def __init__(
        self,
        metrics: WorkerMetrics,
        observer: Observer,
        clock: Callable[[], float],
        *,
        most_rows: int,
        most_images: int,
    ) -> None:
        self._metrics = metrics
        self._observer = observer
        self._clock = clock
        self._most_images = most_images
        self._steps = Pace(most_rows, clock)
        self._codec = Pace(most_images, clock)

    @contextmanager
    def call(self, stage: Stage, tasks: Sequence[Task], amount: int, bucket: int) -> Iterator[None]:
        """Time a call with `amount` network rows or pictures of `tasks`; one that raises is left out."""
        began, began_ns = self._clock(), time.time_ns()
        yield
        seconds = self._clock() - began
        self._metrics.busy_seconds.labels(stage).inc(seconds)
        if stage == "step":
            self._metrics.step_seconds.labels(str(bucket)).observe(seconds)
            self._metrics.network_rows.inc(amount)
            self._metrics.bucket_rows.inc(max(amount, bucket))
        else:
            coded = self._metrics.encode_seconds if stage == "encode" else self._metrics.decode_seconds
            coded.observe(seconds)
        (self._steps if stage == "step" else self._codec).note(max(amount, bucket), seconds)
        self._observer.worked(stage, tasks, amount, began_ns, time.time_ns())

    def speed(self) -> dict[str, float | None]:
        """What a worker announces, see `service.jobs.speed`; None for what was not measured lately."""
        return {
            "rows_per_s": self._steps.per_s,
            "step_s": self._steps.call_s,
            "images_per_s": self._codec.per_s,
            "codec_s": self._codec.call_s,
            "codec_images": self._most_images,
        }
