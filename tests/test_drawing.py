"""Drawing through a runtime: the same protocol for the network and for the no-op runtime."""

import numpy as np
import pytest

from models.bundle import Bundle
from models.config import SamplingConfig
from models.drawing import Drawing, advance, draw, generator_of
from models.errors import InputError
from models.runtime.base import Runtime
from models.runtime.noop_runtime import NoopRuntime
from models.runtime.torch_runtime import TorchRuntime

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
