"""`maskbit bench models`: the published way of computing and our runtimes side by side, on this machine."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import numpy as np
import torch

from models.bundle import Bundle, Manifest
from models.ceilings import CLOCKS, Ceilings, Clock, measure_ceilings, seconds_of
from models.config import GeneratorConfig
from models.contenders import Contender, check_names, load_contenders
from models.drawing import Drawing
from models.errors import InputError, first_line
from models.flops import Work, decoder_work, encoder_work, generator_work
from models.runtime.loading import free_memory
from models.runtime.torch_runtime import choose_device
from models.sampling_config import SamplingConfig
from models.schedule import forward_passes

Call = Callable[[Contender], object]
FP32_BYTES = 4
COLUMNS = "{:22}{:>6} {:16}{:>10}{:>11}{:>9}{:>9}{:>8}{:>8}"
HEADER = COLUMNS.format("", "batch", "", "ms", "images/s", "TFLOP/s", "ceiling", "GB/s", "ratio")


@dataclass(frozen=True)
class Task:
    """Something that each contender does with `batch` pictures.

    `rows` network rows of `work` each run in `calls` calls; `published_rows` without leaving any out. `work`
    is None where it is not counted. `decoder` is that of each picture, if it is decoded in the end. The
    tokenizer's numbers have 4 bytes in every precision: all of them in an `fp32` task.
    """

    name: str
    batch: int
    call: Call
    work: Work | None
    rows: int
    published_rows: int
    calls: int = 1
    fp32: bool = False
    decoder: Work | None = None

    def flops(self, *, published: bool) -> int:
        """Operations of the whole task."""
        assert self.work is not None
        decoding = self.decoder.flops * self.batch if self.decoder else 0
        return self.work.flops * self._rows(published) + decoding

    def bytes(self, number_bytes: int, *, published: bool) -> int:
        """Bytes that it moves at least, where the generator's numbers have `number_bytes`."""
        assert self.work is not None
        rows = self._rows(published) // self.calls
        decoding = self.decoder.bytes(self.batch, FP32_BYTES) if self.decoder else 0
        return self.calls * self.work.bytes(rows, FP32_BYTES if self.fp32 else number_bytes) + decoding

    def _rows(self, published: bool) -> int:
        return self.published_rows if published else self.rows


@dataclass(frozen=True)
class Timer:
    """How calls are timed, and how often."""

    device: torch.device
    clock: Clock
    rounds: int

    def seconds(self, call: Callable[[], object]) -> float:
        """Seconds of one call."""
        return seconds_of(call, self.device, self.clock)


def hardware() -> str:
    """One line on processor, GPU and versions."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{_processor()}, {torch.get_num_threads()} threads{gpu}; Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def bench(
    bundle: Bundle,
    *,
    device: str = "auto",
    runtimes: Sequence[str] = ("torch",),
    batches: Sequence[int] = (),
    steps: Sequence[int] | None = None,
    rounds: int = 3,
    clock: str = "wall",
) -> Iterator[str]:
    """Lines of the report; `batches` and `steps` are by default those that the device is made for.

    Without any `steps` no whole pictures are drawn. `clock` is one of CLOCKS: on a machine that others use,
    seconds of processor time of one thread on a CPU tell more than seconds that passed.
    """
    place = choose_device(device)
    cuda = place.type == "cuda"
    if clock not in CLOCKS:
        raise InputError(f"clock is {clock!r}; allowed are {', '.join(CLOCKS)}")
    check_names(runtimes)
    timer = Timer(place, CLOCKS[clock], rounds)
    # Before the contenders take the device's memory.
    ceilings = measure_ceilings(place, timer.clock)
    yield f"{bundle.ref} on {place}, {clock} time; {hardware()}"
    yield (
        f"ceilings, measured now: {ceilings.flops / 1e12:.2f} TFLOP/s ({ceilings.product}), "
        f"{ceilings.bytes / 1e9:.0f} GB/s (copy)"
    )
    contenders, missing = load_contenders(bundle, place, runtimes)
    yield from missing
    yield HEADER
    if steps is None:
        steps = (16, 64) if cuda else (16,)
    for batch in batches or ((1, 8, 64, 256) if cuda else (1, 16)):
        for task in tasks_of(bundle.manifest, batch, steps):
            yield from compare(task, contenders, ceilings, timer)


def tasks_of(manifest: Manifest, batch: int, steps: Sequence[int]) -> Iterator[Task]:
    """What is measured with `batch` pictures."""
    codec, side, rng = manifest.tokenizer, manifest.image_size, np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    grids = rng.integers(0, codec.num_codes, (batch, manifest.grid, manifest.grid))
    encoder, decoder = encoder_work(codec, side), decoder_work(codec, side)
    yield Task("tokenize", batch, lambda one: one.encode(images), encoder, batch, batch, fp32=True)
    yield Task("detokenize", batch, lambda one: one.decode(grids), decoder, batch, batch, fp32=True)
    if manifest.generator is None:
        return
    config, work = manifest.generator, generator_work(manifest.generator)
    drawings = half_drawn(config, manifest.sampling, batch)
    yield Task("guided step", batch, lambda one: one.step(drawings), work, 2 * batch, 2 * batch)
    labels = [number % config.nclass for number in range(batch)]
    for count in steps:
        sampling = replace(manifest.sampling, steps=count)
        yield Task(
            f"picture, {count} steps",
            batch,
            lambda one, sampling=sampling: one.picture(sampling, labels),  # type: ignore[misc]
            work if decoder else None,
            forward_passes(sampling).total * batch,
            (2 if sampling.guidance_scale else 1) * count * batch,
            count,
            decoder=decoder,
        )


def half_drawn(config: GeneratorConfig, sampling: SamplingConfig, batch: int) -> list[Drawing]:
    """Pictures before a guided step, half of whose groups are drawn already (at random)."""
    sampling = replace(sampling, steps=8, guidance_scale=3.0, guidance_annealing="none")
    rng = np.random.default_rng(0)
    drawings = []
    for number in range(batch):
        one = Drawing.start(config, sampling, number % config.nclass, number)
        known = rng.random(one.tokens.shape) < 0.5
        one.tokens = np.where(known, rng.integers(0, config.group_codes, known.shape), one.tokens)
        one.step = sampling.steps // 2
        drawings.append(one)
    return drawings


def compare(task: Task, contenders: Sequence[Contender], ceilings: Ceilings, timer: Timer) -> Iterator[str]:
    """One line for each contender; they take turns, so that a drift of the machine's speed hits all."""
    reasons = [why_not(task, one) for one in contenders]
    tried = list(zip(contenders, reasons, strict=True))
    seconds = np.array(
        [
            [math.nan if reason else timer.seconds(partial(task.call, one)) for one, reason in tried]
            for _ in range(timer.rounds)
        ]
    )
    for number, (one, reason) in enumerate(tried):
        if reason:
            yield f"{task.name:22}{task.batch:>6} {one.name:16}  {reason}"
            continue
        ratio = median(seconds[:, 0] / seconds[:, number])
        yield line(task, one, float(np.median(seconds[:, number])), ratio, ceilings, published=number == 0)


def why_not(task: Task, one: Contender) -> str | None:
    """Why a contender cannot do a task, None where it can; the first call also warms it up."""
    reason = None
    try:
        task.call(one)
    except Exception as exc:
        # Of libraries: most likely the memory of the device, which all contenders share, does not suffice.
        reason = first_line(exc)
    if reason is not None:
        free_memory()
    return reason


def line(
    task: Task, one: Contender, seconds: float, ratio: float, ceilings: Ceilings, *, published: bool
) -> str:
    """A line of the report; bytes a second only where memory, not arithmetic, sets the limit.

    There is no share of a ceiling that was measured with larger numbers, and no `ratio` where it is NaN.
    """
    speed = share = traffic = "-"
    if task.work is not None:
        number_bytes = FP32_BYTES if task.fp32 else one.number_bytes
        flops, moved = task.flops(published=published), task.bytes(number_bytes, published=published)
        speed = f"{flops / seconds / 1e12:.3f}"
        if number_bytes >= ceilings.number_bytes:
            share = f"{flops / seconds / ceilings.flops:.0%}"
        if ceilings.memory_bound(flops, moved):
            traffic = f"{moved / seconds / 1e9:.1f}"
    ms, images = f"{seconds * 1e3:.1f}", f"{task.batch / seconds:.2f}"
    times = "-" if math.isnan(ratio) else f"{ratio:.2f}x"
    return COLUMNS.format(task.name, task.batch, one.name, ms, images, speed, share, traffic, times)
