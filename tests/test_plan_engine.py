"""The simulated engine beside the real one: the same rounds at the same times, recorded and random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.bundle import open_bundle
from models.errors import MaskBitError
from models.runtime.base import Integers, Pixels, StepBatch, StepResult
from models.runtime.noop_runtime import NoopRuntime
from models.sampling_config import SamplingConfig
from models.schedule import StepPlan
from service.jobs.payloads import GenerateJob, TokenizeJob
from service.plan.requests import plans_of
from service.plan.simulated_engine import SimulatedEngine
from service.plan.step_times import StepTimes
from service.telemetry import WorkerMetrics
from service.worker.engine import Engine
from service.worker.scheduler import Row, SlotTable
from service.worker.task import Task

BUNDLE = open_bundle("fruit")
SIDE = BUNDLE.manifest.image_size
TIMES = StepTimes(
    hardware="none",
    model="none",
    runtime="none",
    sampling=BUNDLE.manifest.sampling,
    slots=3,
    buckets=(1, 2, 4, 8, 16, 32),
    step_s={1: 1.0, 2: 1.5, 8: 4.0, 32: 13.0},
    decode_s={1: 0.5, 16: 5.0},
    encode_s={1: 0.75, 16: 6.0},
    file_s=0.0,
    file_bytes=0,
    pixels_bytes=0,
    tokens_bytes=0,
    service_s=0.0,
    source="test",
)
Done = list[tuple[float, str]]
Calls = list[tuple[float, str, int]]


@dataclass(frozen=True)
class Arrival:
    """A task that comes at `at_s`: pictures to draw with guidance or not, or to tokenize with 0 steps."""

    at_s: float
    images: int
    steps: int
    guided: bool = True
    lasts_s: float = float("inf")


class Clocked(NoopRuntime):
    """Its calls take the times of the table on a clock of their own, and are noted."""

    buckets = TIMES.buckets

    def __init__(self) -> None:
        super().__init__(BUNDLE)
        self.now_s = 0.0
        self.calls: Calls = []

    def step(self, batch: StepBatch) -> StepResult:
        rows = len(batch) + int(np.count_nonzero(batch.guidance_scale))
        self._pass("step", rows, TIMES.step(rows))
        return super().step(batch)

    def decode(self, indices: Integers) -> Pixels:
        self._pass("decode", len(indices), TIMES.decode(len(indices)))
        return super().decode(indices)

    def encode(self, images: Pixels) -> Integers:
        self._pass("encode", len(images), TIMES.encode(len(images)))
        return super().encode(images)

    def _pass(self, name: str, size: int, seconds: float) -> None:
        self.calls.append((self.now_s, name, size))
        self.now_s += seconds


class Clerk:
    """Hears what the real engine completes."""

    def __init__(self, runtime: Clocked) -> None:
        self.runtime = runtime
        self.done: Done = []

    def progressed(self, task: Task, row: Row, preview: Pixels | None) -> None:
        """Nobody follows."""

    def completed(self, task: Task) -> None:
        self.done.append((self.runtime.now_s, task.id))

    def failed(self, task: Task, error: MaskBitError) -> None:
        raise error


class Case(Protocol):
    """An engine of either kind on a clock."""

    now_s: float

    def submit(self, task: Task) -> None: ...
    def round(self) -> bool: ...
    def room(self) -> tuple[int, int]: ...


class Real:
    """The worker's engine."""

    def __init__(self, slots: int) -> None:
        self.runtime = Clocked()
        self.clerk = Clerk(self.runtime)
        self.engine = Engine(
            self.runtime,
            BUNDLE.manifest,
            SlotTable(slots),
            self.clerk,
            WorkerMetrics(),
            clock=lambda: self.runtime.now_s,
        )
        self.submit = self.engine.submit

    @property
    def now_s(self) -> float:
        return self.runtime.now_s

    @now_s.setter
    def now_s(self, value: float) -> None:
        self.runtime.now_s = value

    def room(self) -> tuple[int, int]:
        return self.engine.free_slots(), self.engine.free_codec()

    def round(self) -> bool:
        before = len(self.runtime.calls)
        self.engine.turn()
        return len(self.runtime.calls) > before


class Simulated:
    """That of `maskbit plan`."""

    def __init__(self, slots: int) -> None:
        self.now_s = 0.0
        self.calls: Calls = []
        self.done: Done = []
        self.engine = SimulatedEngine(TIMES, slots, plans, lambda: self.now_s)
        self.submit = self.engine.submit

    def room(self) -> tuple[int, int]:
        return self.engine.free_slots(), self.engine.free_codec()

    def round(self) -> bool:
        turn, _ = self.engine.begin()
        if turn is None:
            return False
        size = sum(row.cost for row in turn.rows) or sum(task.images for task in turn.tasks)
        self.calls.append((self.now_s, "step" if turn.work == "drawing" else "encode", size))
        self.now_s += turn.call_s
        finished = [row for row in turn.rows if row.steps_left == 1]
        decoding_s = self.engine.called(turn)
        if decoding_s:
            self.calls.append((self.now_s, "decode", len(finished)))
        self.now_s += decoding_s
        self.done += [(self.now_s, task.id) for task in self.engine.ended(turn)]
        return True


def plans(task: Task) -> Sequence[StepPlan]:
    assert isinstance(task.request, GenerateJob)
    return plans_of(task.request.sampling)


def task_of(number: int, one: Arrival) -> Task:
    request: GenerateJob | TokenizeJob
    if one.steps:
        scale = 5.0 if one.guided else 0.0
        sampling: SamplingConfig = replace(TIMES.sampling, steps=one.steps, guidance_scale=scale)
        request = GenerateJob((0,) * one.images, tuple(range(one.images)), sampling, "npy")
    else:
        request = TokenizeJob.of(np.zeros((one.images, SIDE, SIDE, 3), dtype=np.uint8))
    return Task(str(number), request, deadline_s=one.at_s + one.lasts_s)


def play(case: Case, arrivals: Sequence[Arrival]) -> list[tuple[int, int]]:
    """Rounds until all that arrives is done; the room before each."""
    left = [(one.at_s, task_of(number, one)) for number, one in enumerate(arrivals)]
    left.sort(key=lambda pair: pair[0])
    rooms = []
    while True:
        while left and left[0][0] <= case.now_s:
            case.submit(left.pop(0)[1])
        rooms.append(case.room())
        if not case.round():
            if not left:
                return rooms
            case.now_s = left[0][0]


def compare(arrivals: Sequence[Arrival], slots: int) -> tuple[Calls, Done]:
    real, simulated = Real(slots), Simulated(slots)
    assert play(simulated, arrivals) == play(real, arrivals)
    assert [(name, size) for _, name, size in simulated.calls] == [
        (name, size) for _, name, size in real.runtime.calls
    ]
    assert [at_s for at_s, *_ in simulated.calls] == pytest.approx([at_s for at_s, *_ in real.runtime.calls])
    assert [name for _, name in simulated.done] == [name for _, name in real.clerk.done]
    assert [at_s for at_s, _ in simulated.done] == pytest.approx([at_s for at_s, _ in real.clerk.done])
    ours, theirs = simulated.engine.announcement(), real.engine.meter.speed()
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs)
    return simulated.calls, simulated.done


def test_a_recorded_case_goes_as_in_the_engine_round_by_round() -> None:
    arrivals = [
        Arrival(0.0, images=1, steps=4),
        Arrival(0.0, images=2, steps=3),
        Arrival(0.5, images=1, steps=0),
        Arrival(1.0, images=2, steps=2, guided=False),
        Arrival(2.0, images=16, steps=0),
        Arrival(3.0, images=3, steps=5),
        Arrival(3.0, images=1, steps=6, lasts_s=9.0),
        Arrival(60.0, images=1, steps=1),
    ]
    calls, done = compare(arrivals, slots=3)
    assert calls[:3] == [(0.0, "step", 3), (calls[1][0], "encode", 1), (calls[2][0], "step", calls[2][2])]
    assert sorted(name for _, name in done) == ["0", "1", "2", "3", "4", "5", "7"]


# Its last decoding begins more than a minute before the end, and ends less than one before it.
PACE_OF_A_CALL_THAT_ENDED_LATELY = [
    *[Arrival(0.0, images=1, steps=0, lasts_s=7.0)] * 10,
    Arrival(14.0, images=4, steps=6),
    Arrival(40.0, images=4, steps=6, lasts_s=20.0),
]


@settings(max_examples=40, deadline=None)
@example(PACE_OF_A_CALL_THAT_ENDED_LATELY, 5)
@given(
    st.lists(
        st.builds(
            Arrival,
            st.floats(0, 40).map(lambda value: round(value, 2)),
            images=st.integers(1, 4),
            steps=st.integers(0, 6),
            guided=st.booleans(),
            lasts_s=st.sampled_from([7.0, 20.0, float("inf")]),
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 5),
)
def test_random_cases_go_as_in_the_engine(arrivals: list[Arrival], slots: int) -> None:
    compare(arrivals, slots)
