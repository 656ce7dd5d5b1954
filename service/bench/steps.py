"""`maskbit bench steps`: how long the calls of a worker take here, for `maskbit plan`.

Measured through the engine, so that noise, padding and book-keeping are part of each step.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from models.bench import hardware
from models.bundle import Bundle, Manifest, open_bundle
from models.drawing import draw, generator_of
from models.errors import MaskBitError
from models.runtime.base import Pixels, Runtime
from models.runtime.loading import load_runtime
from models.sampling_config import SamplingConfig
from service.bench.client import Target, closed_loop
from service.bench.out_file import prepare
from service.bench.running import running_service
from service.jobs.payloads import GenerateJob, TokenizeJob, Tokens
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
    """Nobody asks for the pictures."""

    def progressed(self, task: Task, row: Row, preview: Pixels | None) -> None:
        """Nobody follows."""

    def completed(self, task: Task) -> None:
        """They are there."""

    def failed(self, task: Task, error: MaskBitError) -> None:
        """No task of a benchmark may fail."""
        raise error


def bench_steps(
    ref: str, *, runtime_name: str, device: str, slots: int, rounds: int, seconds: float, out: Path | None
) -> Iterator[str]:
    """Lines of the report; `rounds` calls of each size, `seconds` of a service around no model."""
    if out is not None:
        prepare(out)
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
    steps, pictures = _sizes(runtime, ROWS_PER_SLOT * slots), _sizes(runtime, slots)
    file_s, file_bytes = _file(runtime, bundle)
    pixels_bytes, tokens_bytes = _sizes_of_tokenizing(bundle.manifest)
    return StepTimes(
        hardware=hardware(),
        model=bundle.ref,
        runtime=f"{runtime.name} {runtime.precision} on {runtime.device_name}",
        sampling=bundle.manifest.sampling,
        slots=slots,
        buckets=tuple(range(1, steps[-1] + 1)) if runtime.buckets == _UNPADDED else runtime.buckets,
        step_s=_medians({size: _steps(runtime, bundle, size, rounds) for size in steps}, rounds),
        decode_s=_medians({size: _decodes(runtime, bundle, size) for size in pictures}, rounds),
        encode_s=_medians(
            {size: _encodes(runtime, bundle, size) for size in _sizes(runtime, CODEC_IMAGES)}, rounds
        ),
        file_s=file_s,
        file_bytes=file_bytes,
        pixels_bytes=pixels_bytes,
        tokens_bytes=tokens_bytes,
        service_s=0.0,
        source="maskbit bench steps",
    )


def _medians(calls: dict[int, Iterator[float]], rounds: int) -> dict[int, float]:
    """Of `rounds` calls of each size, which take turns, so that what disturbs them for a while hits all."""
    found = [{size: next(seconds) for size, seconds in calls.items()} for _ in range(rounds + 1)]
    # The first round warms up.
    return {size: median(one[size] for one in found[1:]) for size in calls}


def _sizes(runtime: Runtime, most: int) -> Sizes:
    """The sizes that calls are padded to, up to the one that holds `most`."""
    if runtime.buckets == _UNPADDED:
        return tuple(sorted({1, 2, most // 4 or 1, most // 2 or 1, most}))
    smaller = tuple(one for one in runtime.buckets if one < most)
    return smaller + runtime.buckets[len(smaller) : len(smaller) + 1]


def _engine(runtime: Runtime, bundle: Bundle, slots: int) -> Engine:
    return Engine(runtime, bundle.manifest, SlotTable(slots), _Clerk(), WorkerMetrics())


def _steps(runtime: Runtime, bundle: Bundle, rows: int, rounds: int) -> Iterator[float]:
    """Seconds of steps of `rows` network rows: pictures with guidance, and one without where it is odd."""
    engine = _engine(runtime, bundle, rows)
    # One more than are timed: the last one would finish the pictures.
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
    while True:
        yield _seconds(lambda: engine.step(engine.schedule()))


def _decodes(runtime: Runtime, bundle: Bundle, count: int) -> Iterator[float]:
    """Seconds of decoding `count` pictures that are drawn together."""
    engine = _engine(runtime, bundle, count)
    while True:
        _submit(engine, bundle, count, replace(bundle.manifest.sampling, steps=1, guidance_scale=0.0))
        engine.step(engine.schedule())
        yield _seconds(engine.finish)


def _encodes(runtime: Runtime, bundle: Bundle, count: int) -> Iterator[float]:
    """Seconds of tokenizing `count` pictures together."""
    engine, side = _engine(runtime, bundle, 1), bundle.manifest.image_size
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    for number in itertools.count():
        engine.submit(Task(str(number), TokenizeJob.of(images)))
        engine.schedule()
        yield _seconds(engine.run_codec)


def _file(runtime: Runtime, bundle: Bundle) -> tuple[float, int]:
    """Seconds to make a drawn picture's file, and its bytes."""
    picture = runtime.decode(draw(runtime, bundle.manifest, bundle.manifest.sampling, [0], [0]))[0]
    began = time.perf_counter()
    files = [picture_file(picture, "png") for _ in range(_FILES)]
    return (time.perf_counter() - began) / _FILES, len(files[0])


def _sizes_of_tokenizing(manifest: Manifest) -> tuple[int, int]:
    """Bytes in the queue of one picture, and of its tokens."""
    side, grid = manifest.image_size, manifest.grid
    job = TokenizeJob.of(np.zeros((1, side, side, 3), dtype=np.uint8))
    return len(job.pack()), len(Tokens.of(np.zeros((1, grid, grid), dtype=np.int64)).pack())


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
