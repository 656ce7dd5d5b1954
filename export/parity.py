"""How far a runtime is from a reference on the same inputs, seen through what every runtime offers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.draw_odds import DrawOdds
from export.trial import ROWS, Trial
from models import bits
from models.drawing import generator_of, grids_of, settle, step_batch
from models.runtime.base import Integers, Pixels, Runtime, StepBatch, StepResult
from models.verification import EQUAL_DB, Numbers

Array = NDArray[Any]
ODDS_ROWS = 4  # pictures whose log odds are found, by as many steps as there are halvings


@dataclass(frozen=True)
class Passage:
    """A step of the pictures of one call: what it got, what it gave, and whether it was their last."""

    batch: StepBatch
    result: StepResult
    last: bool

    def state(self, result: StepResult) -> Integers:
        """What a result of this step leaves: tokens for the next one, or the pictures."""
        return result.drawn if self.last else result.tokens


Trace = list[Passage]  # all steps of the pictures of one call


@dataclass
class Stopwatch:
    """Milliseconds a picture of every call, by what was called; `tick` hears of each call."""

    tick: Callable[[], None]
    spent: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def call(self, name: str, rows: int) -> Iterator[None]:
        """Time a call on `rows` pictures."""
        started = time.perf_counter()
        yield
        self.spent.setdefault(name, []).append((time.perf_counter() - started) * 1e3 / rows)
        self.tick()

    def times(self) -> dict[str, float]:
        """The medians, as `<name>_ms`."""
        return {f"{name}_ms": median(spent) for name, spent in self.spent.items()}


@dataclass(frozen=True)
class Reference:
    """The inputs of a trial, and what the reference made of them.

    `grids` i64 (P, h, w) were decoded to `pixels` u8 (P, H, W, 3), and these encoded to `indices`.
    """

    trial: Trial
    traces: list[Trace]
    grids: Integers
    pixels: Pixels
    indices: Integers
    odds: DrawOdds | None
    times: dict[str, float]


def ask_reference(runtime: Runtime, trial: Trial, tick: Callable[[], None]) -> Reference:
    """Everything that other runtimes are compared with."""
    watch = Stopwatch(tick)
    traces = _traces(runtime, trial, watch) if trial.draws else []
    grids = grids_of(trial.manifest, _states(traces)[-1]) if traces else trial.random_grids()
    runtime.encode(runtime.decode(grids[:ROWS]))  # the first calls are slow and not timed
    pixels = _coded(watch, "decode", runtime.decode, grids)
    indices = _coded(watch, "encode", runtime.encode, pixels)
    odds = DrawOdds.of(runtime, _odds_batch(traces[0], trial), tick) if traces else None
    return Reference(trial, traces, grids, pixels, indices, odds, watch.times())


def compare(runtime: Runtime, reference: Reference, tick: Callable[[], None]) -> Numbers:
    """What `runtime` makes of the reference's inputs, in numbers."""
    watch = Stopwatch(tick)
    runtime.encode(runtime.decode(reference.grids[:ROWS]))
    pixels = _coded(watch, "decode", runtime.decode, reference.grids)
    indices = _coded(watch, "encode", runtime.encode, reference.pixels)
    width = reference.trial.manifest.tokenizer.bits
    drawing = _compare_drawing(runtime, reference, watch) if reference.odds is not None else {}
    found: dict[str, Any] = drawing | watch.times()
    return Numbers(
        encode_bits=_share(bits.to_bits(indices, width) == bits.to_bits(reference.indices, width)),
        encode_tokens=_share(indices == reference.indices),
        decode_psnr_db=lowest_psnr(pixels, reference.pixels),
        **found,
    )


def _compare_drawing(runtime: Runtime, reference: Reference, watch: Stopwatch) -> dict[str, Any]:
    """The numbers of the generator, but its time."""
    assert reference.odds is not None
    own = _traces(runtime, reference.trial, watch)
    tokens, drawn = _same_state(runtime, reference, own, watch.tick)
    same = _states(own) == _states(reference.traces)
    errors = reference.odds.errors(runtime, watch.tick)
    return {
        "step_tokens": tokens,
        "step_drawn": drawn,
        "trace_tokens": _share(same),
        "equal_pictures": int(same[-1].all((1, 2)).sum()),
        "logit_error": float(np.sqrt(np.square(errors).mean())) if errors.size else None,
        "logit_error_max": float(np.abs(errors).max()) if errors.size else None,
    }


def lowest_psnr(pixels: Pixels, others: Pixels) -> float:
    """PSNR in dB of the two pictures of (P, H, W, 3) that differ most, at most EQUAL_DB."""
    worst = np.square(pixels.astype(np.float64) - others).mean((1, 2, 3)).max()
    return min(EQUAL_DB, float(10 * np.log10(255**2 / worst))) if worst else EQUAL_DB


def _traces(runtime: Runtime, trial: Trial, watch: Stopwatch) -> list[Trace]:
    """All pictures of the trial, drawn by `runtime` alone."""
    traces = []
    for drawings in trial.drawings():
        trace: Trace = []
        while not drawings[0].finished:
            batch = step_batch(drawings)
            with watch.call("step", len(batch)):
                result = runtime.step(batch)
            settle(drawings, result)
            trace.append(Passage(batch, result, drawings[0].finished))
        traces.append(trace)
    return traces


def _odds_batch(trace: Trace, trial: Trial) -> StepBatch:
    """Some pictures, guided ones and one without guidance, before the step in the middle of their way."""
    batch = trace[trial.steps // 2].batch
    return batch.take(np.arange(min(ODDS_ROWS, len(batch))))


def _same_state(
    runtime: Runtime, reference: Reference, own: list[Trace], tick: Callable[[], None]
) -> tuple[float, float]:
    """Shares of the groups equal after a step, and of those drawn alike in it, each at its worst step.

    The step is not computed again where the runtime's `own` way came through the same state.
    """
    mask_id = generator_of(reference.trial.manifest).group_codes
    tokens, drawn = [], []
    for step, taken in zip(zip(*reference.traces, strict=True), zip(*own, strict=True), strict=True):
        after, alike = [], []
        for one, mine in zip(step, taken, strict=True):
            passed = np.array_equal(mine.batch.tokens, one.batch.tokens)
            got = mine.result if passed else runtime.step(one.batch)
            after.append(one.state(got) == one.state(one.result))
            alike.append((got.drawn == one.result.drawn)[one.batch.tokens == mask_id])
            tick()
        tokens.append(_share(np.concatenate(after)))
        drawn.append(_share(np.concatenate(alike)))
    return min(tokens), min(drawn)


def _states(traces: list[Trace]) -> Integers:
    """Groups i64 (S, P, N, m) of all pictures after each step; after the last one none is masked."""
    steps = zip(*traces, strict=True)
    return np.stack([np.concatenate([one.state(one.result) for one in step]) for step in steps])


def _coded(watch: Stopwatch, name: str, code: Callable[[Array], Array], rows: Array) -> Array:
    """`code` over all rows, ROWS at a time."""
    parts = []
    for start in range(0, len(rows), ROWS):
        chunk = rows[start : start + ROWS]
        with watch.call(name, len(chunk)):
            parts.append(code(chunk))
    return np.concatenate(parts)


def _share(equal: NDArray[np.bool_]) -> float:
    return float(equal.mean())
