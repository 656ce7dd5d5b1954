"""The contract of runtimes: every one of them passes these tests, and none needs a test of its own for it.

What comes out is compared with plain modules in fp32, with golden traces of the published sampler and with
what follows from the definition of a step.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import cache
from threading import Thread
from typing import Any, Protocol

import numpy as np
import pytest
import torch

from export.triton_repository import write_repository
from export.triton_sources import Choice
from models.bundle import GENERATOR_WEIGHTS, TOKENIZER_WEIGHTS, Bundle, Manifest, open_bundle
from models.bundle_writer import write_bundle
from models.config import GeneratorConfig, TokenizerConfig
from models.errors import RuntimeUnavailable
from models.generator import LfqBert
from models.runtime.base import Integers, Runtime, StepBatch, StepResult
from models.runtime.loading import Wish, choose_runtime
from models.sampler import StepInputs, step
from models.sampling_config import SamplingConfig
from models.schedule import plan_steps
from models.tokenizer import ConvTokenizer
from tests import tensorrt_stand_in
from tests.golden_weights import make_weights
from tests.tensorrt_stand_in import Maker
from tests.test_parity import CASES, SEED, build_config, read_case, sampling_config
from tests.triton_fixtures import Triton

MASK, CODES, CLASSES, GROUPS = 8, 8, 5, (64, 2)  # of the tiny generator
RNG_SEED = 20261123


@dataclass(frozen=True)
class Kind:
    """A runtime as `choose_runtime` knows it.

    `apart`: share of the groups that may come out otherwise in other company, or than in plain fp32: another
    kernel for another number of rows may move a tie, though in none of these rows it does today.
    """

    name: str
    precision: str
    device: str = "cpu"

    @property
    def apart(self) -> float:
        return 0.001 if self.precision == "fp32" else 0.01

    def __str__(self) -> str:
        return f"{self.name}-{self.precision}"


NETWORKS = [
    Kind("torch", "fp32"),
    Kind("torch", "bf16"),
    Kind("onnx", "fp32"),
    Kind("onnx", "fp16"),
    Kind("triton", "fp32"),
    Kind("tensorrt", "fp32", "cuda:0"),
]
KINDS = [Kind("noop", "fp32"), *NETWORKS]


def only(kinds: list[Kind]) -> pytest.MarkDecorator:
    """Instead of all kinds."""
    return pytest.mark.parametrize("kind", kinds, ids=str, indirect=True, scope="module")


of_networks = only(NETWORKS)


@pytest.fixture(scope="module", params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


class Load(Protocol):
    """The kind's runtime of a bundle with graphs, warmed up.

    Triton is a real one, TensorRT a stand-in that runs the same graphs beneath all of our own code.
    """

    def __call__(self, bundle: Bundle, *, strict: bool = False) -> Runtime: ...


@pytest.fixture(scope="module")
def load(
    kind: Kind, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Load]:
    with ExitStack() as stack:

        def serve(bundle: Bundle, strict: bool) -> str:
            folder = tmp_path_factory.mktemp("triton") / "repository"
            write_repository(bundle, folder, Choice("python", kind.precision, strict=strict))
            server = Triton(request.getfixturevalue("triton_environment"), folder, folder.parent / "log")
            stack.callback(server.kill)
            server.start()
            return server.urls["grpc"]

        def with_plans(bundle: Bundle) -> Bundle:
            copy = shutil.copytree(bundle.path, tmp_path_factory.mktemp("plans") / bundle.path.name)
            maker = Maker(tensorrt, open_bundle(str(copy)))
            maker.make(kind.precision)
            return maker.bundle

        if kind.name == "tensorrt":
            tensorrt = tensorrt_stand_in.install(stack.enter_context(pytest.MonkeyPatch.context()))

        def loaded(bundle: Bundle, *, strict: bool = False) -> Runtime:
            url = serve(bundle, strict) if kind.name == "triton" else None
            wish = Wish(kind.device, kind.precision, strict, triton_url=url)
            found = with_plans(bundle) if kind.name == "tensorrt" else bundle
            return choose_runtime(found, kind.name, wish).runtime

        yield loaded


@pytest.fixture(scope="module")
def runtime(load: Load, exported_tiny: Bundle) -> Runtime:
    return load(exported_tiny)


@pytest.fixture(scope="module")
def strict(load: Load, exported_tiny: Bundle) -> Runtime:
    return load(exported_tiny, strict=True)


def random_batch(rows: int, seed: int = RNG_SEED, **changes: Any) -> StepBatch:
    """Rows at random steps of random pictures, guided or not; `changes` are fields for all rows."""
    rng = np.random.default_rng(seed)
    shape = (rows, *GROUPS)
    masked = rng.random(shape) < rng.uniform(0.1, 1.0, (rows, 1, 1))
    given: dict[str, Any] = {
        "tokens": np.where(masked, MASK, rng.integers(0, CODES, shape)),
        "labels": rng.integers(0, CLASSES, rows),
        "guidance_scale": rng.choice([0.0, 0.0, 1.5, 7.0], rows),
        "temperature": rng.uniform(0.6, 1.4, rows),
        "noise_temperature": rng.uniform(0.0, 9.0, rows),
        "mask_count": (rng.random(rows) * masked.sum((1, 2))).astype(np.int64),
        "category_uniforms": rng.uniform(1e-6, 1 - 1e-6, shape),
        "confidence_uniforms": rng.uniform(1e-6, 1 - 1e-6, shape),
    }
    given |= {name: np.full_like(given[name], value) for name, value in changes.items()}
    whole = ("tokens", "labels", "mask_count")
    return StepBatch(**{k: v if k in whole else v.astype(np.float32) for k, v in given.items()})


def random_images(rows: int, seed: int = RNG_SEED) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8)


def random_grids(rows: int, seed: int = RNG_SEED) -> Integers:
    return np.random.default_rng(seed).integers(0, 64, (rows, 8, 8))


def differing(one: StepResult, other: StepResult) -> float:
    """Share of the groups that differ, after or before re-masking."""
    return float(((one.tokens != other.tokens) | (one.drawn != other.drawn)).mean())


def masked_again(batch: StepBatch, result: StepResult) -> Any:
    """Numbers of the groups of each row that were masked by the step."""
    return ((result.tokens == MASK) & (batch.tokens == MASK)).sum((1, 2))


def test_a_runtime_tells_what_it_is(kind: Kind, runtime: Runtime) -> None:
    assert (runtime.name, runtime.precision) == (kind.name, kind.precision)
    assert runtime.device_name == ("127.0.0.1" if kind.name == "triton" else kind.device)
    assert list(runtime.buckets) == sorted(set(runtime.buckets))
    assert runtime.buckets[0] >= 1
    assert runtime.memory_bytes() >= 0


@pytest.mark.parametrize("rows", [1, 2, 5, 0])
def test_shapes_and_types_are_those_of_the_contract(runtime: Runtime, rows: int) -> None:
    """0 stands for more rows than the largest bucket holds, and none that the rest of them fits exactly."""
    rows = rows or runtime.buckets[-1] + 5
    images, grids, batch = random_images(rows), random_grids(rows), random_batch(rows)
    indices, pictures, result = runtime.encode(images), runtime.decode(grids), runtime.step(batch)
    assert (indices.dtype, indices.shape) == (np.dtype("int64"), (rows, 8, 8))
    assert (pictures.dtype, pictures.shape) == (np.dtype("uint8"), (rows, 16, 16, 3))
    for groups in (result.tokens, result.drawn):
        assert (groups.dtype, groups.shape) == (np.dtype("int64"), (rows, *GROUPS))
    assert 0 <= indices.min() <= indices.max() < 64
    assert 0 <= result.drawn.min() <= result.drawn.max() < CODES


def test_inputs_may_be_read_only_or_strided_and_stay_as_they_are(runtime: Runtime) -> None:
    """Arrays made of received bytes are read-only, parts and mirrored ones have strides of their own."""

    def awkward(array: Any) -> Any:
        backwards = np.repeat(array, 2, axis=0)[::-2]
        assert not backwards.flags.c_contiguous or len(array) < 2
        backwards.flags.writeable = False
        return backwards

    images, grids, batch = random_images(5), random_grids(5), random_batch(5)
    plain = StepBatch(*(getattr(batch, one.name)[::-1].copy() for one in fields(batch)))
    odd = StepBatch(*(awkward(getattr(batch, one.name)) for one in fields(batch)))
    assert np.array_equal(runtime.encode(awkward(images)), runtime.encode(images[::-1].copy()))
    assert np.array_equal(runtime.encode(images[:, :, ::-1]), runtime.encode(images[:, :, ::-1].copy()))
    assert np.array_equal(runtime.decode(awkward(grids)), runtime.decode(grids[::-1].copy()))
    assert differing(runtime.step(odd), runtime.step(plain)) == 0
    for one in fields(batch):
        assert np.array_equal(getattr(batch, one.name), getattr(random_batch(5), one.name))


def test_what_comes_out_belongs_to_the_caller(runtime: Runtime) -> None:
    """No later call writes into it: runtimes have buffers of their own."""
    calls: list[Callable[[int], Any]] = [
        lambda seed: runtime.encode(random_images(3, seed)),
        lambda seed: runtime.decode(random_grids(3, seed)),
        lambda seed: runtime.step(random_batch(3, seed)).tokens,
        lambda seed: runtime.step(random_batch(3, seed)).drawn,
    ]
    for call in calls:
        first = call(1)
        kept = first.copy()
        assert not np.array_equal(call(2), kept)
        assert np.array_equal(first, kept)
        assert np.array_equal(call(1), kept)


def test_rows_do_not_depend_on_their_company(kind: Kind, runtime: Runtime) -> None:
    """Rows of other steps, guided or not, before and after them or none at all; more than a bucket holds."""
    batch = random_batch(37)
    together = runtime.step(batch)
    alone = [runtime.step(batch.take(np.array([row]))) for row in range(len(batch))]
    apart = StepResult(*(np.concatenate([getattr(r, f.name) for r in alone]) for f in fields(StepResult)))
    assert differing(together, apart) <= kind.apart
    order = np.random.default_rng(RNG_SEED).permutation(len(batch))
    mixed = runtime.step(batch.take(order))
    assert differing(mixed, StepResult(together.tokens[order], together.drawn[order])) <= kind.apart


def test_strict_rows_are_bit_equal_in_any_company(strict: Runtime) -> None:
    rng, batch = np.random.default_rng(RNG_SEED), random_batch(11)
    images, grids = random_images(11), random_grids(11)
    alone = [strict.step(batch.take(np.array([row]))) for row in range(11)]
    codes, pictures = strict.encode(images), strict.decode(grids)
    for size in (1, 2, 3, 4, 5, 8, 11):
        rows = rng.permutation(11)[:size]
        result = strict.step(batch.take(rows))
        assert np.array_equal(result.tokens, np.concatenate([alone[row].tokens for row in rows]))
        assert np.array_equal(result.drawn, np.concatenate([alone[row].drawn for row in rows]))
        assert np.array_equal(strict.encode(images[rows]), codes[rows])
        assert np.array_equal(strict.decode(grids[rows]), pictures[rows])


def test_strict_unguided_rows_do_not_notice_guided_ones(strict: Runtime) -> None:
    batch = random_batch(8)
    scales = np.array([0, 3, 0, 0, 7, 0, 1, 0], dtype=np.float32)
    mixed = strict.step(replace(batch, guidance_scale=scales))
    plain = strict.step(replace(batch, guidance_scale=np.zeros_like(scales)))
    unguided = scales == 0
    assert np.array_equal(mixed.tokens[unguided], plain.tokens[unguided])
    assert np.array_equal(mixed.drawn[unguided], plain.drawn[unguided])


@of_networks
def test_guidance_and_classes_matter(runtime: Runtime) -> None:
    batch = random_batch(6, tokens=MASK, mask_count=0)
    results = [
        runtime.step(replace(batch, guidance_scale=np.full(6, scale, np.float32), labels=np.full(6, label)))
        for scale, label in ((0, 0), (50, 0), (0, 1), (50, 1))
    ]
    for number, one in enumerate(results):
        for other in results[:number]:
            assert not np.array_equal(one.drawn, other.drawn)


def test_settled_groups_stay_and_only_masked_ones_are_masked_again(runtime: Runtime) -> None:
    batch = random_batch(9)
    result = runtime.step(batch)
    settled = batch.tokens != MASK
    assert np.array_equal(result.drawn[settled], batch.tokens[settled])
    assert np.array_equal(result.tokens[settled], batch.tokens[settled])
    kept = result.tokens != MASK
    assert np.array_equal(result.tokens[kept], result.drawn[kept])
    assert np.array_equal(masked_again(batch, result), batch.mask_count)


def test_without_a_mask_count_everything_settles(runtime: Runtime) -> None:
    for tokens in (MASK, 3):
        result = runtime.step(random_batch(5, tokens=tokens, mask_count=0))
        assert np.array_equal(result.tokens, result.drawn)
        assert result.drawn.max() < MASK


def test_the_least_and_the_largest_mask_counts_are_kept(runtime: Runtime) -> None:
    for count in (1, GROUPS[0] * GROUPS[1] - 1):
        batch = random_batch(3, tokens=MASK, mask_count=count)
        assert masked_again(batch, runtime.step(batch)).tolist() == [count] * 3


def test_a_fixed_order_is_kept_whatever_the_network_says(runtime: Runtime) -> None:
    """`halton.py` says an order by noise of temperature 2^64: confidence needs f32 in every precision."""
    batch = random_batch(7, noise_temperature=2.0**64)
    result = runtime.step(batch)
    for row in range(len(batch)):
        masked = (batch.tokens[row] == MASK).ravel()
        ranks = np.where(masked, batch.confidence_uniforms[row].ravel(), np.inf)
        wanted = np.argsort(ranks)[: batch.mask_count[row]]
        assert sorted(np.flatnonzero(result.tokens[row] == MASK)) == sorted(wanted)


@of_networks
def test_without_noise_the_confidence_uniforms_do_not_matter(kind: Kind, runtime: Runtime) -> None:
    batch = random_batch(5, noise_temperature=0.0)
    other = replace(batch, confidence_uniforms=1 - batch.confidence_uniforms)
    assert differing(runtime.step(batch), runtime.step(other)) == 0


@of_networks
def test_a_low_temperature_draws_the_likeliest_category(kind: Kind, runtime: Runtime) -> None:
    batch = random_batch(5, tokens=MASK, temperature=1e-4, mask_count=0)
    other = replace(batch, category_uniforms=1 - batch.category_uniforms)
    # Ties of two logits are left, which fp16 and bf16 have more of.
    assert (runtime.step(batch).drawn != runtime.step(other).drawn).mean() < 0.02


def test_a_high_temperature_draws_all_categories_alike(runtime: Runtime) -> None:
    batch = random_batch(5, tokens=MASK, temperature=1e6, mask_count=0)
    positions = batch.category_uniforms.astype(np.float64) * CODES
    clear = np.abs(positions - positions.round()) > 1e-3
    assert np.array_equal(runtime.step(batch).drawn[clear], positions.astype(np.int64)[clear])


def test_the_outermost_uniforms_draw_the_first_and_the_last_category(runtime: Runtime) -> None:
    for uniform, category in ((0.5 / 2**23, 0), (1 - 0.5 / 2**23, CODES - 1)):
        batch = random_batch(3, tokens=MASK, temperature=1e6, category_uniforms=uniform, mask_count=0)
        assert (runtime.step(batch).drawn == category).all()


@of_networks
def test_a_step_is_that_of_the_plain_network_in_fp32(
    kind: Kind, runtime: Runtime, tiny_generator: LfqBert
) -> None:
    batch = random_batch(37)
    order = np.argsort(batch.guidance_scale == 0, kind="stable")
    ordered = batch.take(order)
    inputs = StepInputs(**{one.name: torch.from_numpy(getattr(ordered, one.name)) for one in fields(ordered)})
    guided = int(np.count_nonzero(ordered.guidance_scale))
    with torch.inference_mode():
        tokens, drawn = step(tiny_generator, inputs, guided, MASK, CLASSES)
    got = runtime.step(ordered)
    masked = ordered.tokens == MASK
    # Of 8-bit mantissas and guidance of 7 times the difference, one draw in a hundred falls otherwise.
    allowed = kind.apart if kind.precision == "fp32" else 0.03
    assert (got.drawn != drawn.numpy())[masked].mean() <= allowed
    assert (got.tokens != tokens.numpy()).mean() <= allowed


@of_networks
def test_encode_and_decode_are_those_of_the_plain_tokenizer(
    kind: Kind, runtime: Runtime, tiny_tokenizer: ConvTokenizer
) -> None:
    """In every precision: a bit is the sign of a latent, hence the tokenizer is always fp32."""
    images, grids = random_images(37), random_grids(37)
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 255)
        indices = tiny_tokenizer.encode(pixels).indices.numpy()
        pictures = tiny_tokenizer.decode_indices(torch.from_numpy(grids)).numpy().transpose(0, 2, 3, 1)
    assert pictures.min() < 0
    assert pictures.max() > 1
    assert (runtime.encode(images) != indices).mean() <= 0.001
    assert np.abs(runtime.decode(grids) - np.clip(pictures, 0, 1) * 255.0).max() <= 0.501


def test_warm_up_leaves_no_state(strict: Runtime) -> None:
    batch, images = random_batch(3), random_images(3)
    before, codes = strict.step(batch), strict.encode(images)
    strict.warm_up()
    strict.step(random_batch(9, seed=1))
    assert differing(strict.step(batch), before) == 0
    assert np.array_equal(strict.encode(images), codes)


def test_a_runtime_may_be_used_by_another_thread_than_it_was_loaded_by(runtime: Runtime) -> None:
    results: list[StepResult] = []
    thread = Thread(target=lambda: results.append(runtime.step(random_batch(3))))
    thread.start()
    thread.join(60)
    assert differing(results[0], runtime.step(random_batch(3))) == 0


def test_without_a_generator_pictures_are_coded_and_a_step_is_refused(
    load: Load, exported_codec: Bundle
) -> None:
    runtime = load(exported_codec)
    assert runtime.decode(runtime.encode(random_images(2))).shape == (2, 16, 16, 3)
    with pytest.raises(RuntimeUnavailable, match="has no generator"):
        runtime.step(random_batch(1))


# Exported graphs replay them in test_onnx_export.py.
GOLDEN_TRACES = [(Kind("torch", "fp32"), name) for name in CASES if name.startswith("sampler_")]


@pytest.fixture(scope="module")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """A golden generator, in a bundle with some tokenizer that goes with it."""

    @cache
    def made(name: str) -> Bundle:
        config: GeneratorConfig = build_config(GeneratorConfig, CASES[name]["config"])
        tokenizer = TokenizerConfig(
            hidden_channels=4,
            channel_mult=(1,) * 5,
            num_resolutions=5,
            num_res_blocks=1,
            norm_groups=2,
            token_size=config.bits,
        )
        manifest = Manifest(
            name="golden",
            image_size=config.img_size,
            tokenizer=tokenizer,
            generator=config,
            sampling=SamplingConfig(),
            class_names=tuple(map(str, range(config.nclass))),
            licence="Apache-2.0",
        )
        shapes = {key: value.shape for key, value in ConvTokenizer(tokenizer).state_dict().items()}
        weights = {
            TOKENIZER_WEIGHTS: make_weights(shapes),
            GENERATOR_WEIGHTS: make_weights(CASES[name]["parameters"], SEED),
        }
        tensors = {
            file: {key: torch.from_numpy(one) for key, one in part.items()} for file, part in weights.items()
        }
        return write_bundle(tmp_path_factory.mktemp("golden") / name, manifest, tensors)

    return made


@pytest.fixture(scope="module")
def golden_runtime(load: Load, golden_bundle: Callable[[str], Bundle]) -> Callable[[str], Runtime]:
    """The runtime of a golden generator, loaded once."""
    return cache(lambda name: load(golden_bundle(name)))


@pytest.mark.parametrize(("kind", "name"), GOLDEN_TRACES, ids=str, indirect=["kind"], scope="module")
def test_golden_traces_of_the_published_sampler_are_replayed(
    golden_runtime: Callable[[str], Runtime], name: str
) -> None:
    case = read_case(name)
    runtime = golden_runtime(case.config["generator"])
    tokens = case("masked_tokens_before_step")[0]
    rows, *groups = tokens.shape
    plans = plan_steps(sampling_config(case.config), int(np.prod(groups)))
    for number, plan in enumerate(plans):
        assert np.array_equal(tokens, case("masked_tokens_before_step")[number]), f"before step {number}"
        result = runtime.step(
            StepBatch(
                tokens=tokens,
                labels=case("labels"),
                guidance_scale=np.full(rows, plan.guidance_scale, np.float32),
                temperature=np.full(rows, plan.temperature, np.float32),
                noise_temperature=np.full(rows, plan.noise_temperature, np.float32),
                mask_count=np.full(rows, plan.mask_count),
                category_uniforms=case("uniform_tokens")[number].astype(np.float32),
                confidence_uniforms=case("uniform_confidence")[number].astype(np.float32),
            )
        )
        assert np.array_equal(result.drawn, case("predicted_tokens")[number]), f"step {number}"
        tokens = result.tokens
