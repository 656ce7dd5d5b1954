"""The baseline of all speeds computes what the reference does: its tokens, and both passes at every step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models import bits
from models.bundle import GENERATOR_WEIGHTS, TOKENIZER_WEIGHTS, Bundle, Manifest
from models.bundle_writer import write_bundle
from models.config import GeneratorConfig, TokenizerConfig
from models.networks import build_tokenizer
from models.published_way import PublishedWay
from models.runtime.torch_runtime import TorchRuntime
from models.sampling_config import SamplingConfig
from models.schedule import plan_steps
from tests.golden_weights import make_weights
from tests.test_parity import CASES, SEED, build_config, read_case, sampling_config

CPU = torch.device("cpu")
SAMPLERS = [name for name in CASES if name.startswith("sampler_")]


def golden_bundle(folder: Path, case: str, sampling: SamplingConfig) -> Bundle:
    """The case's generator beside a tokenizer that fits it."""
    generator: GeneratorConfig = build_config(GeneratorConfig, CASES[case]["config"])
    levels = generator.input_stride.bit_length()
    tokenizer = TokenizerConfig(
        hidden_channels=4,
        channel_mult=(1,) * levels,
        num_resolutions=levels,
        num_res_blocks=1,
        norm_groups=4,
        token_size=generator.bits,
    )
    weights: dict[str, Tensor] = {
        key: torch.from_numpy(value) for key, value in make_weights(CASES[case]["parameters"], SEED).items()
    }
    manifest = Manifest(
        name="golden",
        image_size=generator.img_size,
        tokenizer=tokenizer,
        generator=generator,
        sampling=sampling,
        class_names=tuple(str(number) for number in range(generator.nclass)),
        licence="Apache-2.0",
    )
    files = {TOKENIZER_WEIGHTS: build_tokenizer(tokenizer).state_dict(), GENERATOR_WEIGHTS: weights}
    return write_bundle(folder / "golden", manifest, files)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_published_way_draws_the_tokens_of_the_reference(tmp_path: Path, name: str) -> None:
    case = read_case(name)
    sampling = sampling_config(case.config)
    way = PublishedWay(golden_bundle(tmp_path, case.config["generator"], sampling), CPU)
    tokens = drawn = case.tensor("masked_tokens_before_step")[0]
    noise = torch.stack([case.tensor("uniform_tokens"), case.tensor("uniform_confidence")], dim=1).float()
    guided = sampling.guidance_scale != 0
    for number, plan in enumerate(plan_steps(sampling, tokens[0].numel())):
        assert np.array_equal(tokens, case("masked_tokens_before_step")[number])
        tokens, drawn = way.step(plan, tokens, case.tensor("labels"), noise[number], guided=guided)
        assert np.array_equal(drawn, case("predicted_tokens")[number])
    assert np.array_equal(bits.join_groups(drawn.numpy(), way.generator.config.bits), case("final_indices"))


@pytest.mark.parametrize(("scale", "passes"), [(3.0, 2), (0.0, 1)])
def test_every_step_of_a_guided_picture_runs_both_passes(
    tiny_bundle: Bundle, scale: float, passes: int
) -> None:
    way = PublishedWay(tiny_bundle, CPU)
    rows: list[int] = []
    way.generator.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    grids = way.draw(SamplingConfig(steps=5, guidance_scale=scale), [0, 1, 4])
    assert rows == [3 * passes] * 5
    assert grids.shape == (3, 8, 8)
    assert grids.min() >= 0
    assert grids.max() < 64


def test_the_published_way_codes_pictures_like_the_runtime(tiny_bundle: Bundle) -> None:
    way, runtime = PublishedWay(tiny_bundle, CPU), TorchRuntime(tiny_bundle, device="cpu")
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    indices = way.encode(images)
    assert np.array_equal(indices, runtime.encode(images))
    assert np.abs(way.decode(indices).astype(int) - runtime.decode(indices)).max() <= 1
