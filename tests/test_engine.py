"""The engine with the no-op runtime, turn by turn, and with runtimes that fail on purpose."""

import numpy as np
import pytest

from models.bundle import Bundle, Manifest
from models.config import GeneratorConfig, TokenizerConfig
from models.drawing import draw
from models.errors import MaskBitError
from models.runtime.base import Integers, Pixels, StepBatch, StepResult
from models.runtime.noop_runtime import NoopRuntime
from models.sampling_config import SamplingConfig
from service.jobs.payloads import DetokenizeJob, GenerateJob, TokenizeJob
from service.telemetry import WorkerMetrics
from service.worker.engine import CODEC_IMAGES, Engine
from service.worker.scheduler import Row
from service.worker.task import Task

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
    """Notes how many rows every step has; breaks on the class `poison`."""

    def __init__(self, bundle: Bundle, poison: int = -1) -> None:
        super().__init__(bundle)
        self.rows: list[int] = []
        self.poison = poison

    def step(self, batch: StepBatch) -> StepResult:
        if self.poison in batch.labels:
            raise ValueError("poison")
        self.rows.append(len(batch))
        return super().step(batch)


def make(tmp_path_bundle: Bundle, slots: int = 4, poison: int = -1) -> tuple[Engine, Diary, CountingRuntime]:
    diary = Diary()
    runtime = CountingRuntime(tmp_path_bundle, poison)
    return Engine(runtime, MANIFEST, slots, diary, WorkerMetrics()), diary, runtime


@pytest.fixture
def bundle(tmp_path: object) -> Bundle:
    return Bundle(tmp_path, MANIFEST)  # type: ignore[arg-type]


def generate(
    task_id: str, count: int = 1, steps: int = 4, seed: int = 0, label: int = 0, **more: object
) -> Task:
    sampling = SamplingConfig(steps=steps, guidance_scale=0.0, noise_temperature=1.0)
    seeds = tuple(range(seed, seed + count))
    return Task(task_id, GenerateJob((label,) * count, seeds, sampling, "png", **more))  # type: ignore[arg-type]


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


def test_capacity_is_told_by_kind_and_a_full_table_still_takes_codec_tasks(bundle: Bundle) -> None:
    engine, _, _ = make(bundle, slots=4)
    assert (engine.free_slots(), engine.free_codec()) == (4, CODEC_IMAGES)
    engine.submit(generate("a", count=3))
    assert engine.free_slots() == 1
    engine.submit(generate("b", count=3))
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
    """Cannot decode what has `forbidden` grids in one call, or anything when 0."""

    forbidden = 2

    def decode(self, indices: Integers) -> Pixels:
        if len(indices) >= self.forbidden:
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


def test_a_failed_decode_fails_only_the_task_that_cannot_be_decoded_alone(bundle: Bundle) -> None:
    engine, diary, _ = make(bundle)
    engine.runtime = WeakDecoder(bundle)
    engine.submit(generate("small"))
    engine.submit(generate("large", count=2))
    run(engine)
    assert [task.id for task in diary.done] == ["small"]
    assert list(diary.errors) == ["large"]


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
