"""The engine with the no-op runtime, turn by turn, and with runtimes that fail on purpose."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.bundle import Bundle, Manifest
from models.config import GeneratorConfig, TokenizerConfig
from models.drawing import draw
from models.errors import MaskBitError
from models.runtime.base import Integers, Pixels, StepBatch, StepResult
from models.runtime.noop_runtime import NoopRuntime
from models.sampling_config import SamplingConfig
from service.jobs.payloads import DetokenizeJob, GenerateJob, TokenizeJob
from service.telemetry import WorkerMetrics
from service.worker.codec import CODEC_IMAGES
from service.worker.engine import Engine
from service.worker.scheduler import Row, SlotTable
from service.worker.task import NoObserver, Observer, Stage, Task

TOKENIZER = TokenizerConfig(
    hidden_channels=8, channel_mult=(1, 2), num_resolutions=2, num_res_blocks=1, norm_groups=4, token_size=6
)
GENERATOR = GeneratorConfig(
    bits=6, hidden_dim=16, depth=1, heads=2, mlp_dim=16, img_size=16, input_stride=2, nclass=4
)
SAMPLING = SamplingConfig(steps=4, guidance_scale=2.0, noise_temperature=1.0)
MANIFEST = Manifest("tiny", 16, TOKENIZER, GENERATOR, SAMPLING, ("a", "b", "c", "d"), "CC0-1.0")


class Diary:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.done: list[Task] = []
        self.errors: dict[str, MaskBitError] = {}
        self.steps: list[tuple[str, int, int, bool]] = []

    def progressed(self, task: Task, row: Row, preview: Pixels | None) -> None:
        self.steps.append((task.id, row.image, row.step, preview is not None))

    def completed(self, task: Task) -> None:
        self.done.append(task)

    def failed(self, task: Task, error: MaskBitError) -> None:
        self.errors[task.id] = error


class CountingRuntime(NoopRuntime):
    """Notes how many rows every step has; breaks on the class `poison`.

    It has a clock of its own, by which a step lasts `step_s` and a picture of the codec `image_s`.
    """

    def __init__(self, bundle: Bundle, poison: int = -1) -> None:
        super().__init__(bundle)
        self.rows: list[int] = []
        self.network_rows: list[int] = []
        self.calls = 0
        self.poison = poison
        self.error = "poison"
        self.now_s = 0.0
        self.step_s = 1.0
        self.image_s = 1.0

    def step(self, batch: StepBatch) -> StepResult:
        self.calls += 1
        self.now_s += self.step_s
        if self.poison in batch.labels:
            raise ValueError(self.error)
        self.rows.append(len(batch))
        self.network_rows.append(len(batch) + int(np.count_nonzero(batch.guidance_scale)))
        return super().step(batch)

    def encode(self, images: Pixels) -> Integers:
        self.now_s += self.image_s * len(images)
        return super().encode(images)


class Watcher(NoObserver):
    """An observer that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, tuple[str, ...], int]] = []

    def worked(self, stage: Stage, tasks: Sequence[Task], rows: int, began_ns: int, ended_ns: int) -> None:
        assert 0 < began_ns <= ended_ns
        self.heard.append((stage, tuple(task.id for task in tasks), rows))


def make(
    bundle: Bundle, slots: int = 4, poison: int = -1, observer: Observer | None = None
) -> tuple[Engine, Diary, CountingRuntime]:
    diary, runtime = Diary(), CountingRuntime(bundle, poison)
    engine = Engine(
        runtime,
        MANIFEST,
        SlotTable(slots),
        diary,
        WorkerMetrics(),
        observer=observer,
        clock=lambda: runtime.now_s,
    )
    return engine, diary, runtime


@pytest.fixture
def bundle(tmp_path: object) -> Bundle:
    return Bundle(tmp_path, MANIFEST, "")  # type: ignore[arg-type]


def generate(
    task_id: str,
    count: int = 1,
    steps: int = 4,
    seed: int = 0,
    label: int = 0,
    guidance: float = 0.0,
    format_: str = "png",
    **more: object,
) -> Task:
    sampling = SamplingConfig(
        steps=steps, guidance_scale=guidance, guidance_annealing="none", noise_temperature=1.0
    )
    seeds = tuple(range(seed, seed + count))
    return Task(task_id, GenerateJob((label,) * count, seeds, sampling, format_, **more))  # type: ignore[arg-type]


def run(engine: Engine) -> None:
    for _ in range(100):
        if engine.idle:
            return
        engine.turn()
    raise AssertionError("the engine does not come to rest")


def grid(task: Task, image: int = 0) -> Integers:
    return task.grids[image]


def test_a_late_picture_joins_at_once_and_a_short_one_leaves_first(bundle: Bundle) -> None:
    engine, diary, runtime = make(bundle)
    engine.submit(generate("long", steps=6))
    engine.turn()
    engine.submit(generate("short", steps=2))
    run(engine)
    assert [task.id for task in diary.done] == ["short", "long"]
    assert runtime.rows == [1, 2, 2, 1, 1, 1]


def test_tokens_in_company_are_those_of_the_plain_loop(bundle: Bundle) -> None:
    engine, diary, runtime = make(bundle, slots=3)
    tasks = [generate(f"t{k}", count=1 + k % 2, steps=2 + k, seed=100 * k, label=k % 4) for k in range(6)]
    for task in tasks:
        engine.submit(task)
        engine.turn()
    run(engine)
    assert len(diary.done) == 6
    for task in tasks:
        request = task.request
        assert isinstance(request, GenerateJob)
        alone = draw(runtime, MANIFEST, request.sampling, request.class_ids, request.seeds)
        for image, expected in enumerate(alone):
            np.testing.assert_array_equal(grid(task, image), expected)


def test_a_dropped_task_leaves_before_the_next_step_and_its_steps_are_counted(bundle: Bundle) -> None:
    engine, diary, runtime = make(bundle)
    engine.submit(generate("wanted"))
    engine.submit(generate("unwanted", count=2))
    engine.turn()
    engine.drop(["unwanted", "never heard of"])
    run(engine)
    assert runtime.rows == [3, 1, 1, 1]
    assert [task.id for task in diary.done] == ["wanted"]
    assert b"maskbit_steps_saved_total 6.0" in engine.metrics.render()


def test_rows_padding_and_time_of_the_network_are_counted(bundle: Bundle) -> None:
    engine, _, runtime = make(bundle, slots=8)
    runtime.buckets = (4, 16)
    engine.submit(generate("five rows", count=5, steps=3))
    run(engine)
    engine.submit(Task("codec", TokenizeJob.of(np.zeros((2, 16, 16, 3), dtype=np.uint8))))
    run(engine)
    text = engine.metrics.render().decode()
    assert "maskbit_network_rows_total 15.0" in text
    assert "maskbit_bucket_rows_total 48.0" in text
    assert 'maskbit_busy_seconds_total{stage="step"} 3.0' in text
    assert 'maskbit_busy_seconds_total{stage="encode"} 2.0' in text


def test_a_step_has_as_many_network_rows_as_the_slots_allow(bundle: Bundle) -> None:
    engine, diary, runtime = make(bundle, slots=3)
    for number in range(4):
        engine.submit(generate(f"guided{number}", count=2, steps=3, guidance=2.0))
        engine.submit(generate(f"plain{number}", count=3, steps=5))
    run(engine)
    assert len(diary.done) == 8
    assert max(runtime.network_rows) == 6
    assert max(runtime.rows) > 3


def test_a_late_task_leaves_before_the_next_step_and_its_rows_are_counted(bundle: Bundle) -> None:
    engine, diary, runtime = make(bundle)
    engine.submit(generate("in time", steps=6))
    engine.submit(generate("late", count=2, steps=6, guidance=2.0))
    engine.submit(Task("late too", TokenizeJob.of(np.zeros((1, 16, 16, 3), dtype=np.uint8))))
    for item in engine._arriving()[1:]:
        item.deadline_s = 2.0
    runtime.image_s = 10.0
    engine._arriving()[2].deadline_s = 0.0
    run(engine)
    assert runtime.rows == [3, 3, 1, 1, 1, 1]
    assert [task.id for task in diary.done] == ["in time"]
    assert diary.errors == {}
    assert b"maskbit_steps_saved_total 8.0" in engine.metrics.render()
    assert b"maskbit_rows_saved_total 16.0" in engine.metrics.render()


def test_progress_is_told_for_followed_tasks_only_with_previews_when_asked(bundle: Bundle) -> None:
    engine, diary, _ = make(bundle)
    engine.submit(generate("followed", events=True, preview_every=2))
    engine.submit(generate("silent"))
    run(engine)
    assert diary.steps == [("followed", 0, 1, False), ("followed", 0, 2, True), ("followed", 0, 3, False)]


def test_codec_tasks_run_between_the_steps_of_a_full_table(bundle: Bundle) -> None:
    engine, diary, _ = make(bundle, slots=1)
    engine.submit(generate("picture", steps=8))
    engine.turn()
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    engine.submit(Task("tokens", TokenizeJob.of(images)))
    engine.submit(Task("back", DetokenizeJob(1, 8, np.full((8, 8), 5, dtype="<i4").tobytes())))
    engine.turn()
    assert [task.id for task in diary.done] == ["tokens", "back"]
    tokens, back = diary.done
    np.testing.assert_array_equal(np.stack([grid(tokens, 0), grid(tokens, 1)]), engine.runtime.encode(images))
    assert back.pictures[0].shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (GenerateJob((9,), (0,), SAMPLING, "png"), "class 9"),
        (GenerateJob((0,), (-1,), SAMPLING, "png"), "seed is -1"),
        (GenerateJob((0,), (0,), SamplingConfig(steps=129), "png"), "steps is 129"),
        (TokenizeJob.of(np.zeros((1, 8, 8, 3), dtype=np.uint8)), "8 pixels wide"),
        (DetokenizeJob(1, 8, np.full((8, 8), 64, dtype="<i4").tobytes()), "allowed are 0 to 63"),
    ],
)
def test_a_request_that_the_model_cannot_do_fails_alone_with_its_reason(
    bundle: Bundle, request_: GenerateJob | TokenizeJob | DetokenizeJob, words: str
) -> None:
    engine, diary, _ = make(bundle)
    engine.submit(Task("wrong", request_))
    engine.submit(generate("right"))
    run(engine)
    assert words in str(diary.errors["wrong"])
    assert [task.id for task in diary.done] == ["right"]


def test_a_step_that_raises_fails_only_the_guilty_task(bundle: Bundle) -> None:
    engine, diary, _ = make(bundle, poison=3)
    innocent = generate("innocent", seed=5)
    engine.submit(innocent)
    engine.submit(generate("guilty", label=3))
    run(engine)
    assert list(diary.errors) == ["guilty"]
    request = innocent.request
    assert isinstance(request, GenerateJob)
    expected = draw(NoopRuntime(bundle), MANIFEST, request.sampling, (0,), (5,))[0]
    np.testing.assert_array_equal(grid(innocent), expected)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), count=st.integers(1, 40))
def test_the_guilty_among_many_are_found_by_halving(bundle: Bundle, data: st.DataObject, count: int) -> None:
    guilty = data.draw(st.sets(st.integers(0, count - 1), max_size=4))
    engine, diary, runtime = make(bundle, slots=count, poison=3)
    for number in range(count):
        engine.submit(generate(str(number), steps=1, label=3 if number in guilty else 0))
    engine.turn()
    assert {int(name) for name in diary.errors} == guilty
    assert {int(task.id) for task in diary.done} == set(range(count)) - guilty
    assert sum(runtime.rows) == count - len(guilty)
    assert runtime.calls <= 1 + 2 * math.ceil(math.log2(count)) * len(guilty)


def test_a_job_of_which_one_picture_fails_fails_as_a_whole_and_alone(bundle: Bundle) -> None:
    engine, diary, _ = make(bundle, slots=8, poison=3)
    tasks = [generate(f"innocent{k}", count=2, seed=10 * k) for k in range(2)]
    sampling = tasks[0].request.sampling  # type: ignore[union-attr]
    tasks.insert(1, Task("guilty", GenerateJob((0, 1, 3, 0), (1, 2, 3, 4), sampling, "png", events=True)))
    for task in tasks:
        engine.submit(task)
    run(engine)
    assert list(diary.errors) == ["guilty"]
    assert diary.steps == []
    for task in (tasks[0], tasks[2]):
        request = task.request
        assert isinstance(request, GenerateJob)
        expected = draw(NoopRuntime(bundle), MANIFEST, sampling, request.class_ids, request.seeds)
        np.testing.assert_array_equal(np.stack([grid(task, 0), grid(task, 1)]), expected)


def test_an_error_of_the_gpu_goes_up_and_blames_nobody(bundle: Bundle) -> None:
    engine, diary, runtime = make(bundle, poison=3)
    runtime.error = "CUDA error: an illegal memory access was encountered"
    engine.submit(generate("innocent"))
    engine.submit(generate("guilty", label=3))
    with pytest.raises(ValueError, match="CUDA error"):
        engine.turn()
    assert runtime.calls == 1
    assert diary.errors == {}


@pytest.mark.parametrize(("step_s", "image_s"), [(1.0, 0.01), (1.0, 1.0), (0.05, 1.0), (1.0, 7.0)])
def test_neither_drawing_nor_coding_starves_the_other_however_slow_it_is(
    bundle: Bundle, step_s: float, image_s: float
) -> None:
    engine, _, runtime = make(bundle, slots=1)
    runtime.step_s, runtime.image_s = step_s, image_s
    drawing_s = coding_s = 0.0
    images = np.zeros((4, 16, 16, 3), dtype=np.uint8)
    longest = max(step_s, CODEC_IMAGES * image_s)
    for number in range(400):
        if engine.free_slots():
            engine.submit(generate(f"picture{number}", steps=64))
        while engine.free_codec():
            engine.submit(Task(f"flood{number}-{engine.free_codec()}", TokenizeJob.of(images)))
        before, steps = runtime.now_s, runtime.calls
        engine.turn()
        if runtime.calls > steps:
            drawing_s += runtime.now_s - before
        else:
            coding_s += runtime.now_s - before
        assert abs(drawing_s - coding_s) <= longest
    assert min(drawing_s, coding_s) > 0


def test_a_lone_codec_task_waits_for_one_step_at_most(bundle: Bundle) -> None:
    engine, diary, _ = make(bundle)
    engine.submit(generate("picture", steps=64))
    for _ in range(20):
        engine.turn()
    engine.submit(Task("tokens", TokenizeJob.of(np.zeros((1, 16, 16, 3), dtype=np.uint8))))
    engine.turn()
    assert [task.id for task in diary.done] == ["tokens"]


def test_an_observer_hears_of_every_batch_with_its_tasks(bundle: Bundle) -> None:
    watcher = Watcher()
    engine, _, _ = make(bundle, observer=watcher)
    engine.submit(generate("guided", steps=2, guidance=2.0))
    engine.submit(generate("plain", steps=1, format_="tokens"))
    engine.submit(Task("tokens", TokenizeJob.of(np.zeros((3, 16, 16, 3), dtype=np.uint8))))
    run(engine)
    assert watcher.heard == [
        ("encode", ("tokens",), 3),
        ("step", ("guided", "plain"), 3),
        ("step", ("guided",), 2),
        ("decode", ("guided",), 1),
    ]


def test_the_measured_speed_is_told_once_there_were_large_steps(bundle: Bundle) -> None:
    engine, _, runtime = make(bundle, slots=4)
    assert set(engine.meter.speed().values()) == {None, CODEC_IMAGES}
    runtime.step_s = 0.5
    engine.submit(generate("small", steps=2))
    run(engine)
    assert engine.meter.speed()["step_s"] == 0.5
    assert engine.meter.speed()["rows_per_s"] is None
    engine.submit(generate("large", count=4, steps=2, guidance=2.0))
    run(engine)
    assert engine.meter.speed()["rows_per_s"] == 8 / 0.5


def test_capacity_is_told_by_kind_and_a_full_table_still_takes_codec_tasks(bundle: Bundle) -> None:
    engine, _, _ = make(bundle, slots=4)
    assert (engine.free_slots(), engine.free_codec()) == (4, CODEC_IMAGES)
    engine.submit(generate("a", count=3))
    assert engine.free_slots() == 1
    engine.submit(generate("b", count=3, guidance=2.0))
    assert engine.free_slots() == 0
    engine.turn()
    assert (engine.free_slots(), engine.free_codec()) == (0, CODEC_IMAGES)
    engine.submit(Task("tokens", TokenizeJob.of(np.zeros((3, 16, 16, 3), dtype=np.uint8))))
    assert engine.free_codec() == CODEC_IMAGES - 3
    run(engine)
    assert (engine.free_slots(), engine.free_codec()) == (4, CODEC_IMAGES)


def test_a_suspect_task_leaves_no_room_beside_it(bundle: Bundle) -> None:
    engine, _, _ = make(bundle, slots=4)
    suspect = generate("suspect")
    suspect.solo = True
    engine.submit(suspect)
    assert engine.free_slots() == 0
    run(engine)
    assert engine.free_slots() == 4


def test_waiting_for_room_ends_when_there_is_some_or_when_the_time_is_over(bundle: Bundle) -> None:
    engine, _, _ = make(bundle, slots=1)
    assert engine.wait_for(engine.free_slots, 0.01) == 1
    engine.submit(generate("a"))
    assert engine.wait_for(engine.free_slots, 0.01) == 0


class WeakDecoder(CountingRuntime):
    """Cannot decode two grids in one call, nor the grid `broken` at all."""

    broken: Integers | None = None

    def decode(self, indices: Integers) -> Pixels:
        if len(indices) > 1 or (self.broken is not None and (indices == self.broken).all()):
            raise ValueError("out of memory")
        return super().decode(indices)


def test_a_failed_preview_costs_nobody_a_picture(bundle: Bundle) -> None:
    engine, diary, _ = make(bundle)
    runtime = WeakDecoder(bundle)
    engine.runtime = runtime
    for name in ("a", "b"):
        engine.submit(generate(name, events=True, preview_every=1))
    run(engine)
    assert diary.errors == {}
    assert sorted(task.id for task in diary.done) == ["a", "b"]
    assert not any(preview for *_, preview in diary.steps)
    assert runtime.rows == [2] * 4


def test_a_failed_decode_fails_only_the_task_whose_picture_cannot_be_decoded_alone(bundle: Bundle) -> None:
    engine, diary, _ = make(bundle)
    engine.runtime = runtime = WeakDecoder(bundle)
    guilty = generate("guilty", count=2, seed=8)
    runtime.broken = draw(NoopRuntime(bundle), MANIFEST, guilty.request.sampling, [0], [9])[0]  # type: ignore[union-attr]
    for task in (generate("before"), guilty, generate("after", seed=20)):
        engine.submit(task)
    run(engine)
    assert [task.id for task in diary.done] == ["before", "after"]
    assert list(diary.errors) == ["guilty"]
    assert all(set(task.pictures) == {0} for task in diary.done)


def test_a_suspect_codec_task_runs_when_nothing_else_does(bundle: Bundle) -> None:
    engine, diary, _ = make(bundle)
    engine.submit(generate("picture", steps=3))
    engine.turn()
    engine.submit(Task("suspect", TokenizeJob.of(np.zeros((1, 16, 16, 3), dtype=np.uint8)), solo=True))
    assert (engine.free_slots(), engine.free_codec()) == (0, 0)
    run(engine)
    assert [task.id for task in diary.done] == ["picture", "suspect"]


def test_a_task_that_is_dropped_and_handed_in_again_is_done_once(bundle: Bundle) -> None:
    engine, diary, _ = make(bundle)
    engine.submit(generate("a"))
    engine.drop(["a"])
    engine.submit(generate("a"))
    run(engine)
    assert [task.id for task in diary.done] == ["a"]
