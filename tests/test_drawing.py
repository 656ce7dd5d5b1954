"""Drawing through a runtime: the same protocol for the network and for the no-op runtime."""

from dataclasses import replace

import numpy as np
import pytest

from models.bundle import Bundle
from models.drawing import Drawing, advance, draw, generator_of
from models.errors import InputError
from models.runtime.base import Runtime
from models.runtime.noop_runtime import NoopRuntime
from models.runtime.torch_runtime import TorchRuntime
from models.sampling_config import SamplingConfig

SAMPLING = SamplingConfig(steps=9, guidance_scale=2.0, guidance_annealing="cosine", noise_temperature=3.0)


@pytest.fixture(scope="module", params=["torch", "noop"])
def runtime(request: pytest.FixtureRequest, tiny_bundle: Bundle) -> Runtime:
    return TorchRuntime(tiny_bundle, device="cpu") if request.param == "torch" else NoopRuntime(tiny_bundle)


def test_every_step_leaves_as_many_groups_masked_as_its_plan_says(
    runtime: Runtime, tiny_bundle: Bundle
) -> None:
    config = generator_of(tiny_bundle.manifest)
    drawings = [Drawing.start(config, SAMPLING, label, seed=label) for label in range(5)]
    for step in range(SAMPLING.steps):
        plan = drawings[0].plan
        advance(runtime, drawings)
        left = [int((one.tokens == config.group_codes).sum()) for one in drawings]
        wanted = 0 if step == SAMPLING.steps - 1 else plan.mask_count
        assert left == [wanted] * 5


def test_a_fixed_order_settles_the_groups_in_that_order(runtime: Runtime, tiny_bundle: Bundle) -> None:
    config = generator_of(tiny_bundle.manifest)
    sampling = replace(SAMPLING, group_order="halton")
    drawings = [Drawing.start(config, sampling, label, seed=label) for label in range(5)]
    ranks = [one.ranks.flatten() for one in drawings if one.ranks is not None]
    assert len({tuple(one) for one in ranks}) == 5
    for _ in range(SAMPLING.steps - 1):
        plan = drawings[0].plan
        advance(runtime, drawings)
        for one, rank in zip(drawings, ranks, strict=True):
            masked = np.flatnonzero(one.tokens.flatten() == config.group_codes)
            assert sorted(masked) == sorted(np.argsort(rank)[: plan.mask_count])
    advance(runtime, drawings)
    assert all(one.finished and one.tokens.max() < config.group_codes for one in drawings)


def test_pictures_of_different_orders_share_a_batch(runtime: Runtime, tiny_bundle: Bundle) -> None:
    config = generator_of(tiny_bundle.manifest)
    samplings = [SAMPLING, replace(SAMPLING, group_order="halton")]
    together = [Drawing.start(config, one, 1, seed=3) for one in samplings]
    while not together[0].finished:
        advance(runtime, together)
    for sampling, one in zip(samplings, together, strict=True):
        alone = Drawing.start(config, sampling, 1, seed=3)
        while not alone.finished:
            advance(runtime, [alone])
        np.testing.assert_array_equal(one.tokens, alone.tokens)


def test_what_is_drawn_depends_on_seed_and_class_alone(runtime: Runtime, tiny_bundle: Bundle) -> None:
    manifest = tiny_bundle.manifest
    grids = draw(runtime, manifest, SAMPLING, [0, 0, 1], [5, 5, 5])
    np.testing.assert_array_equal(grids[0], grids[1])
    assert grids.shape == (3, 8, 8)
    assert grids.min() >= 0
    assert grids.max() < 64
    other = draw(runtime, manifest, SAMPLING, [0], [6])
    assert (other[0] != grids[0]).any()


def test_pictures_of_a_runtime_have_the_bundles_size(runtime: Runtime, tiny_bundle: Bundle) -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    indices = runtime.encode(images)
    assert indices.shape == (3, 8, 8)
    assert indices.dtype == np.int64
    pictures = runtime.decode(indices)
    assert pictures.shape == (3, 16, 16, 3)
    assert pictures.dtype == np.uint8


@pytest.mark.parametrize(
    ("label", "seed", "steps", "words"),
    [(5, 0, 9, "class 5"), (-1, 0, 9, "class -1"), (0, -1, 9, "seed is -1"), (0, 0, 129, "steps is 129")],
)
def test_what_is_out_of_range_is_refused_at_the_start(
    tiny_bundle: Bundle, label: int, seed: int, steps: int, words: str
) -> None:
    config = generator_of(tiny_bundle.manifest)
    with pytest.raises(InputError, match=words):
        Drawing.start(config, SamplingConfig(steps=steps), label, seed)
