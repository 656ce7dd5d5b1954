"""`maskbit bench steps`: how long the calls of a worker take here, for `maskbit plan`.

Measured through the engine, so that noise, padding and book-keeping are part of each step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from models.bench import hardware
from models.bundle import Bundle, open_bundle
from models.drawing import generator_of
from models.errors import MaskBitError
from models.runtime.base import Pixels, Runtime
from models.runtime.loading import load_runtime
from models.sampling_config import SamplingConfig
from service.bench.client import Target, closed_loop
from service.bench.running import running_service
from service.jobs.payloads import GenerateJob, TokenizeJob
from service.pictures import picture_file
from service.plan.step_times import StepTimes
from service.telemetry import WorkerMetrics
from service.worker.codec import CODEC_IMAGES
from service.worker.engine import Engine
from service.worker.scheduler import ROWS_PER_SLOT, Row, SlotTable
from service.worker.task import Task

_NOTHING: dict[str, object] = {"class_id": 0, "seed": 1, "steps": 1, "format": "tokens"}
_FILES = 20
_UNPADDED = (1,)  # the buckets of a runtime that takes any number of rows as it is
Sizes = tuple[int, ...]


class _Clerk:
    """Keeps the pictures of completed tasks."""

    def __init__(self) -> None:
        self.pictures: list[Pixels] = []

    def progressed(self, task: Task, row: Row, preview: Pixels | None) -> None:
        """Nobody follows."""

    def completed(self, task: Task) -> None:
        """The pictures are there."""
        self.pictures += task.pictures.values()

    def failed(self, task: Task, error: MaskBitError) -> None:
        """No task of a benchmark may fail."""
        raise error


def bench_steps(
    ref: str, *, runtime_name: str, device: str, slots: int, rounds: int, seconds: float, out: Path | None
) -> Iterator[str]:
    """Lines of the report; `rounds` calls of each size, `seconds` of a service around no model."""
    bundle = open_bundle(ref)
    runtime = load_runtime(bundle, runtime_name, device=device)
    runtime.warm_up()
    times = replace(measure(runtime, bundle, slots, rounds), service_s=service_s(seconds))
    yield f"{times.model} on {times.runtime}, {slots} slots; {times.hardware}"
    yield from lines_of(times)
    if out is not None:
        times.save(out)
        yield f"written to {out}"


def lines_of(times: StepTimes) -> Iterator[str]:
    """The times by size, in ms."""
    for title in ("step", "decode", "encode"):
        known = getattr(times, f"{title}_s")
        by_size = "  ".join(f"{size}: {second * 1e3:.1f}" for size, second in known.items())
        yield f"{title:10}{by_size} ms"
    yield f"{'file':10}{times.file_s * 1e3:.1f} ms, {times.file_bytes / 1000:.1f} kB"
    yield f"{'service':10}{times.service_s * 1e3:.1f} ms"


def measure(runtime: Runtime, bundle: Bundle, slots: int, rounds: int) -> StepTimes:
    """The times of `runtime`, without those of a service."""
    rows = _sizes(runtime, ROWS_PER_SLOT * slots)
    pictures = [_decoded(runtime, bundle, size, rounds) for size in _sizes(runtime, slots)]
    [picture] = pictures[0][1][:1]
    began = time.perf_counter()
    files = [picture_file(picture, "png") for _ in range(_FILES)]
    file_s = (time.perf_counter() - began) / _FILES
    return StepTimes(
        hardware=hardware(),
        model=bundle.ref,
        runtime=f"{runtime.name} {runtime.precision} on {runtime.device_name}",
        sampling=bundle.manifest.sampling,
        slots=slots,
        buckets=tuple(range(1, rows[-1] + 1)) if runtime.buckets == _UNPADDED else runtime.buckets,
        step_s={size: _stepped_s(runtime, bundle, size, slots, rounds) for size in rows},
        decode_s={size: second for size, (second, _) in zip(_sizes(runtime, slots), pictures, strict=True)},
        encode_s={size: _encoded_s(runtime, bundle, size, rounds) for size in _sizes(runtime, CODEC_IMAGES)},
        file_s=file_s,
        file_bytes=len(files[0]),
        service_s=0.0,
        source="maskbit bench steps",
    )


def _sizes(runtime: Runtime, most: int) -> Sizes:
    """The sizes that calls are padded to, up to the one that holds `most`."""
    if runtime.buckets == _UNPADDED:
        return tuple(sorted({1, 2, most // 4 or 1, most // 2 or 1, most}))
    smaller = tuple(one for one in runtime.buckets if one < most)
    return smaller + runtime.buckets[len(smaller) : len(smaller) + 1]


def _engine(runtime: Runtime, bundle: Bundle, slots: int) -> tuple[Engine, _Clerk]:
    clerk = _Clerk()
    return Engine(runtime, bundle.manifest, SlotTable(slots), clerk, WorkerMetrics()), clerk


def _stepped_s(runtime: Runtime, bundle: Bundle, rows: int, slots: int, rounds: int) -> float:
    """Seconds of a step of `rows` network rows: pictures with guidance, and one without where it is odd."""
    engine, _ = _engine(runtime, bundle, max(slots, (rows + 1) // ROWS_PER_SLOT))
    # Two steps more: one to warm up, and the last one, which would finish pictures.
    guided = replace(
        bundle.manifest.sampling,
        steps=rounds + 2,
        guidance_scale=3.0,
        guidance_annealing="none",
        guidance_cutoff=0.0,
        guidance_interval=(0.0, 1.0),
    )
    _submit(engine, bundle, rows // ROWS_PER_SLOT, guided)
    _submit(engine, bundle, rows % ROWS_PER_SLOT, replace(guided, guidance_scale=0.0))
    engine.step(engine.schedule())
    return median(_seconds(lambda: engine.step(engine.schedule())) for _ in range(rounds))


def _decoded(runtime: Runtime, bundle: Bundle, count: int, rounds: int) -> tuple[float, list[Pixels]]:
    """Seconds until `count` pictures that are drawn are decoded, and the pictures."""
    engine, clerk = _engine(runtime, bundle, count)
    found = []
    for _ in range(rounds + 1):
        _submit(engine, bundle, count, replace(bundle.manifest.sampling, steps=1, guidance_scale=0.0))
        engine.step(engine.schedule())
        found.append(_seconds(engine.finish))
    return median(found[1:]), clerk.pictures


def _encoded_s(runtime: Runtime, bundle: Bundle, count: int, rounds: int) -> float:
    """Seconds until `count` pictures are tokenized."""
    engine, _ = _engine(runtime, bundle, 1)
    side, found = bundle.manifest.image_size, []
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    for number in range(rounds + 1):
        engine.submit(Task(str(number), TokenizeJob.of(images)))
        engine.schedule()
        found.append(_seconds(engine.run_codec))
    return median(found[1:])


def _submit(engine: Engine, bundle: Bundle, count: int, sampling: SamplingConfig) -> None:
    classes = generator_of(bundle.manifest).nclass
    for number in range(count):
        name = f"{number} at {sampling.guidance_scale}"
        engine.submit(Task(name, GenerateJob((number % classes,), (number,), sampling, "npy")))


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def service_s(seconds: float) -> float:
    """The median time of a request whose picture costs nothing, with the service otherwise idle."""
    with running_service("noop") as service:
        target = Target(service.port, "/generate", _NOTHING)
        closed_loop(target, clients=1, seconds=min(1.0, seconds))
        return closed_loop(target, clients=1, seconds=seconds).quantile_ms(0.5) / 1e3
