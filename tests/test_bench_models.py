"""`maskbit bench models`: who is compared, what is counted, and that the report is whole. Speeds are not."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.bench import Task, Timer, bench, compare, line, tasks_of
from models.bundle import Bundle, Manifest, open_bundle
from models.ceilings import CLOCKS, Ceilings
from models.contenders import Contender, load_contenders
from models.drawing import Drawing
from models.errors import BundleError, InputError
from models.flops import Work
from models.presets import find_preset
from models.random_weights import open_or_make, random_bundle
from models.runtime.base import Integers, Pixels
from models.sampling_config import SamplingConfig
from service.bench.cli import bench_models

CPU = torch.device("cpu")
CEILINGS = Ceilings(flops=100e9, bytes=10e9, product="float32 2048^3", number_bytes=4)


class Counted:
    """A contender that only counts."""

    number_bytes = 4

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[str] = []

    def encode(self, images: Pixels) -> object:
        self.calls.append("encode")
        return None

    def decode(self, grids: Integers) -> object:
        self.calls.append("decode")
        return None

    def step(self, drawings: Sequence[Drawing]) -> object:
        self.calls.append("step")
        return None

    def picture(self, sampling: SamplingConfig, labels: Sequence[int]) -> object:
        self.calls.append("picture")
        return None


def test_the_report_compares_every_task_of_every_batch(tiny_bundle: Bundle) -> None:
    lines = list(
        bench(
            tiny_bundle,
            device="cpu",
            runtimes=["torch", "torch:bf16", "tensorrt"],
            batches=[1, 3],
            steps=[2, 4],
            rounds=1,
            clock="cpu",
        )
    )
    assert lines[0].startswith(tiny_bundle.ref)
    assert "TFLOP/s" in lines[1]
    assert lines[2].startswith("tensorrt: ")
    rows = lines[4:]
    assert len(rows) == 2 * 5 * 3
    tasks = ["tokenize", "detokenize", "guided step", "picture, 2 steps", "picture, 4 steps"]
    assert [row[:22].strip() for row in rows[::3]] == tasks * 2
    assert {row[22:28].strip() for row in rows} == {"1", "3"}
    assert [row[29:45].strip() for row in rows[:3]] == ["published way", "torch fp32", "torch bf16"]
    assert all(row.endswith("1.00x") for row in rows[::3])


def test_contenders_take_turns() -> None:
    order: list[str] = []
    contenders = [Counted("published way"), Counted("one"), Counted("two")]

    def call(one: Contender) -> None:
        order.append(one.name)

    task = Task("nothing", 1, call, None, 1, 1)
    lines = list(compare(task, contenders, CEILINGS, Timer(CPU, CLOCKS["cpu"], rounds=2)))
    assert order == [one.name for one in contenders] * 3, "once to warm up, then two rounds"
    assert len(lines) == 3


def test_guidance_rows_that_a_runtime_leaves_out_are_not_credited_to_it(tiny_manifest: Manifest) -> None:
    sampling = replace(tiny_manifest.sampling, guidance_annealing="linear", guidance_scale=3.0)
    tasks = {task.name: task for task in tasks_of(replace(tiny_manifest, sampling=sampling), 2, (4,))}
    picture = tasks["picture, 4 steps"]
    assert (picture.published_rows, picture.rows, picture.calls) == (2 * 8, 2 * 7, 4)
    assert (tasks["guided step"].published_rows, tasks["guided step"].rows) == (4, 4)
    unguided = replace(tiny_manifest, sampling=replace(sampling, guidance_scale=0.0))
    picture = list(tasks_of(unguided, 2, (4,)))[-1]
    assert (picture.published_rows, picture.rows) == (8, 8)


def test_a_contender_without_enough_memory_gets_a_line_and_the_others_are_measured() -> None:
    class Large(Counted):
        def encode(self, images: Pixels) -> object:
            raise torch.OutOfMemoryError("out of memory\nat a long address")

    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    task = Task("tokenize", 2, lambda one: one.encode(images), Work(10**9, 0, 0), 2, 2, fp32=True)
    timer = Timer(CPU, CLOCKS["cpu"], rounds=2)
    first, second = compare(task, [Counted("published way"), Large("large")], CEILINGS, timer)
    assert first.endswith("1.00x")
    assert second.split() == ["tokenize", "2", "large", "out", "of", "memory"]
    first, second = compare(task, [Large("published way"), Counted("other")], CEILINGS, timer)
    assert first.endswith("out of memory")
    assert second.endswith(" -"), "nothing to compare with"


def test_a_picture_counts_its_decoding_and_smaller_numbers_have_no_share_of_the_ceiling(
    tiny_manifest: Manifest,
) -> None:
    tasks = {task.name: task for task in tasks_of(tiny_manifest, 2, (4,))}
    decoding, picture = tasks["detokenize"], tasks["picture, 4 steps"]
    assert decoding.work is not None
    assert picture.work is not None
    assert picture.flops(published=True) == 16 * picture.work.flops + 2 * decoding.work.flops
    one, half = Counted("fp32"), Counted("bf16")
    half.number_bytes = 2
    lines = [line(picture, each, 1.0, 1.0, CEILINGS, published=True) for each in (one, half)]
    assert ["%" in text for text in lines] == [True, False]
    assert "%" in line(decoding, half, 1.0, 1.0, CEILINGS, published=True), "the tokenizer is fp32"
    codec = replace(
        tiny_manifest.tokenizer,
        model_class="taming",
        quantizer_type="lookup",
        codebook_size=64,
        token_size=5,
        use_l2_normalisation=True,
    )
    uncounted = list(tasks_of(replace(tiny_manifest, tokenizer=codec), 2, (4,)))[-1]
    assert uncounted.work is None


def test_the_measured_step_is_guided_and_half_drawn(tiny_manifest: Manifest) -> None:
    task = list(tasks_of(tiny_manifest, 3, ()))[-1]
    seen: list[Sequence[Drawing]] = []

    class Looking(Counted):
        def step(self, drawings: Sequence[Drawing]) -> object:
            seen.append(drawings)
            return None

    task.call(Looking("looking"))
    (drawings,) = seen
    assert len(drawings) == 3
    for one in drawings:
        assert one.plan.guidance_scale == 3.0
        assert 0.3 < float(np.mean(one.tokens == 8)) < 0.7


def test_a_line_holds_speed_share_of_the_ceiling_and_traffic_where_memory_sets_the_limit() -> None:
    contender = Counted("one")

    def words(work: Work | None, calls: int) -> list[str]:
        task = Task("step", 4, lambda one: one.step([]), work, 8, 16, calls=calls)
        return line(task, contender, 0.1, 2.0, CEILINGS, published=False).split()

    arithmetic = Work(flops=10**9, weights=10**6, moved=0)
    assert words(arithmetic, 1) == ["step", "4", "one", "100.0", "40.00", "0.080", "80%", "-", "2.00x"]
    assert words(Work(flops=10**6, weights=10**8, moved=0), 2)[-2:] == ["8.0", "2.00x"]
    assert words(None, 1)[-4:] == ["-", "-", "-", "2.00x"]


def test_a_preset_stands_for_random_weights_that_are_the_same_every_time(tmp_path: Path) -> None:
    model = find_preset("maskbit_generator_10bit").model
    assert model.generator is not None
    small = replace(
        model,
        tokenizer=replace(model.tokenizer, hidden_channels=32),
        generator=replace(model.generator, hidden_dim=32, depth=1, heads=2, mlp_dim=32),
    )
    one, two = random_bundle(small, tmp_path / "a"), random_bundle(small, tmp_path / "b")
    assert one.manifest.files == two.manifest.files
    assert len(one.manifest.class_names) == 1000
    contenders, missing = load_contenders(one, CPU, ["torch"])
    assert [each.name for each in contenders] == ["published way", "torch fp32"]
    assert not missing


def test_a_folder_of_random_weights_is_reused_and_another_bundle_is_never_replaced(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    model = replace(
        find_preset("maskbit_tokenizer_10bit").model,
        tokenizer=tiny_bundle.manifest.tokenizer,
        image_size=16,
    )
    made = random_bundle(model, tmp_path / "random")
    (made.path / "onnx").mkdir()
    assert random_bundle(model, tmp_path / "random") == made
    assert (made.path / "onnx").is_dir(), "what was exported stays"
    trained = Path(shutil.copytree(tiny_bundle.path, tmp_path / "trained"))
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    for other in (trained, made.path):
        with pytest.raises(BundleError, match="holds another bundle; give an empty or a new folder"):
            random_bundle(replace(model, name="other"), other)
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before


def test_a_bundle_is_opened_and_an_unknown_name_is_refused() -> None:
    with open_or_make("fruit") as bundle:
        assert bundle.revision == open_bundle("fruit").revision
    with pytest.raises(BundleError, match="no bundle 'nonesuch'"), open_or_make("nonesuch"):
        pass


@pytest.mark.parametrize("batches", ["0", "1,x", "-1"])
def test_lists_of_numbers_are_checked(batches: str) -> None:
    with pytest.raises(InputError, match=r"--batches is .* such as 1,8,64"):
        bench_models("fruit", batches=batches)


def test_a_runtime_that_there_is_not_is_refused_before_anything_is_measured(tiny_bundle: Bundle) -> None:
    with pytest.raises(InputError, match="--runtimes holds 'tpu:fp32'; allowed are auto, torch, onnx"):
        list(bench(tiny_bundle, runtimes=["torch", "tpu:fp32"], steps=()))
