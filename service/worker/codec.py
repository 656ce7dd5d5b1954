"""Tokenize and detokenize tasks: which of them make the next batch, and the network calls that do them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models import bits
from models.bundle import Manifest
from models.errors import InputError
from models.runtime.base import Pixels, Runtime
from service.jobs.payloads import DetokenizeJob, TokenizeJob
from service.worker.task import Task

CODEC_IMAGES = 16  # pictures of one batch


class CodecQueue:
    """Tasks in order of arrival. One marked solo waits until it is alone."""

    def __init__(self) -> None:
        self._tasks: deque[Task] = deque()

    @property
    def images(self) -> int:
        """Pictures that wait."""
        return sum(task.images for task in self._tasks)

    def add(self, task: Task) -> None:
        """Queue a task."""
        self._tasks.append(task)

    def remove(self, task_id: str) -> None:
        """Forget a task."""
        self._tasks = deque(task for task in self._tasks if task.id != task_id)

    def ready(self, *, alone: bool) -> bool:
        """Whether there is a batch; `alone`: no picture is being drawn."""
        return bool(self._tasks) and (alone or not self._tasks[0].solo)

    def take(self) -> list[Task]:
        """The next batch: tasks of `CODEC_IMAGES` pictures together, or one that is larger."""
        batch = [self._tasks.popleft()]
        images = batch[0].images
        while self._tasks and not (batch[0].solo or self._tasks[0].solo):
            images += self._tasks[0].images
            if images > CODEC_IMAGES:
                break
            batch.append(self._tasks.popleft())
        return batch


def encode(runtime: Runtime, manifest: Manifest, tasks: Sequence[Task]) -> None:
    """Fill in the token grids of tokenize `tasks`, in one call. Raises InputError."""
    requests = [task.request for task in tasks if isinstance(task.request, TokenizeJob)]
    images = np.concatenate([request.images() for request in requests])
    _check_size(manifest, images)
    grids = runtime.encode(images)
    for task, start in _starts(tasks):
        task.grids = dict(enumerate(grids[start : start + task.images]))


def decode(runtime: Runtime, manifest: Manifest, tasks: Sequence[Task]) -> None:
    """Fill in the pictures of detokenize `tasks`, in one call. Raises InputError."""
    requests = [task.request for task in tasks if isinstance(task.request, DetokenizeJob)]
    grids = np.concatenate([request.array() for request in requests])
    bits.check_indices(grids, manifest.tokenizer.bits)
    pictures = runtime.decode(grids)
    for task, start in _starts(tasks):
        task.grids = dict(enumerate(grids[start : start + task.images]))
        task.pictures = dict(enumerate(pictures[start : start + task.images]))


def _starts(tasks: Sequence[Task]) -> list[tuple[Task, int]]:
    counts = [task.images for task in tasks]
    return list(zip(tasks, np.cumsum([0, *counts[:-1]]).tolist(), strict=True))


def _check_size(manifest: Manifest, images: Pixels) -> None:
    side = manifest.image_size
    if images.shape[1] != side:
        raise InputError(f"pictures are {images.shape[1]} pixels wide; this model reads {side}")


@dataclass(frozen=True)
class Coder:
    """How tasks with one kind of request are done."""

    request: type[TokenizeJob] | type[DetokenizeJob]
    stage: Literal["encode", "decode"]
    run: Callable[[Runtime, Manifest, Sequence[Task]], None]


CODERS = (Coder(TokenizeJob, "encode", encode), Coder(DetokenizeJob, "decode", decode))
