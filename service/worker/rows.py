"""The rows of a generate job: one for each of its pictures."""

from __future__ import annotations

from models import bits
from models.bundle import Manifest
from models.config import GeneratorConfig
from models.drawing import canvas_of, generator_of
from models.runtime.base import Integers
from service.jobs.payloads import GenerateJob
from service.worker.scheduler import Row
from service.worker.task import Task


def rows_of(manifest: Manifest, task: Task) -> list[Row]:
    """The pictures of a generate task before their first step. Raises InputError, RuntimeUnavailable."""
    request = task.request
    assert isinstance(request, GenerateJob)
    config = generator_of(manifest)
    canvas = _canvas(config, request)
    return [
        Row.start(config, request.sampling, label, seed, canvas, task_id=task.id, image=image)
        for image, (label, seed) in enumerate(zip(request.class_ids, request.seeds, strict=True))
    ]


def _canvas(config: GeneratorConfig, request: GenerateJob) -> Integers | None:
    """What the job's pictures are drawn on, i64 (N, m); None for nothing. Raises InputError."""
    if not request.mask:
        return None
    shape = (config.grid, config.grid)
    tokens = bits.unpack(request.tokens, shape, config.bits)
    return canvas_of(config, tokens, bits.unpack_mask(request.mask, shape))
