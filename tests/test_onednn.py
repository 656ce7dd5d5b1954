"""The generator with layers packed for oneDNN computes what the plain one does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from models.bundle import open_bundle
from models.config import GeneratorConfig
from models.generator import Generator
from models.networks import build_generator
from models.runtime import onednn
from models.runtime.onednn import PackedAttention, PackedLinear

SMALL = GeneratorConfig(
    bits=6,
    hidden_dim=32,
    depth=2,
    heads=4,
    mlp_dim=72,
    codebook_splits=2,
    img_size=16,
    input_stride=2,
    nclass=5,
)
CONFIGS = {
    "post-norm": SMALL,
    "pre-norm": GeneratorConfig(**{**vars(SMALL), "use_prenorm": True}),
    "embedded": GeneratorConfig(**{**vars(SMALL), "model_cls": "bert"}),
}
if not onednn.available(torch.float32):
    pytest.skip("this build of PyTorch has no oneDNN", allow_module_level=True)


def random_generator(config: GeneratorConfig) -> Generator:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = build_generator(config)
        for parameter in generator.parameters():
            nn.init.normal_(parameter, std=0.2)
    return generator.eval().requires_grad_(False)


def inputs_of(config: GeneratorConfig, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = torch.Generator().manual_seed(rows)
    shape = (rows, config.num_tokens, config.codebook_splits)
    tokens = torch.randint(0, config.group_codes + 1, shape, generator=numbers)
    return tokens, torch.randint(0, config.nclass + 1, (rows,), generator=numbers)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_packed_layers_give_the_same_logits(name: str, rows: int) -> None:
    plain = random_generator(CONFIGS[name])
    packed = copy.deepcopy(plain)
    onednn.pack(packed)
    tokens, labels = inputs_of(CONFIGS[name], rows)
    with torch.inference_mode():
        wanted, got = plain(tokens, labels), packed(tokens, labels)
    assert wanted.std() > 0.1
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_every_linear_layer_is_packed_and_gelu_goes_with_it() -> None:
    generator = random_generator(SMALL)
    linears = sum(isinstance(module, nn.Linear) for module in generator.modules())
    onednn.pack(generator)
    modules = list(generator.modules())
    assert not any(isinstance(module, nn.Linear | nn.GELU) for module in modules)
    assert sum(isinstance(module, PackedAttention) for module in modules) == SMALL.depth
    # The projection to queries, keys and values was a bare parameter.
    assert sum(isinstance(module, PackedLinear) for module in modules) == linears + SMALL.depth


def test_packed_layers_keep_no_second_copy_of_the_weights() -> None:
    generator = random_generator(SMALL)
    onednn.pack(generator)
    left = {name for name, value in generator.state_dict().items() if value.dim() == 2}
    assert left == {"class_emb.weight"}


@pytest.mark.skipif(not onednn.available(torch.bfloat16), reason="this processor has no bf16 for oneDNN")
def test_packed_layers_compute_in_bf16_too() -> None:
    plain = random_generator(SMALL).bfloat16()
    packed = copy.deepcopy(plain)
    onednn.pack(packed)
    tokens, labels = inputs_of(SMALL, 3)
    with torch.inference_mode():
        wanted, got = plain(tokens, labels), packed(tokens, labels)
    assert got.dtype == torch.bfloat16
    assert (got - wanted).abs().max() <= 0.05 * wanted.abs().max()


def test_half_precision_is_left_to_pytorch() -> None:
    assert not onednn.available(torch.float16)


def test_the_bundled_generator_is_packed_within_rounding() -> None:
    config = open_bundle("fruit").manifest.generator
    assert config is not None
    assert config.use_prenorm, "then the residual stream is not normalised"
    plain = random_generator(config)
    packed = copy.deepcopy(plain)
    onednn.pack(packed)
    tokens, labels = inputs_of(config, 2)
    with torch.inference_mode():
        wanted, got = plain(tokens, labels), packed(tokens, labels)
    assert (got - wanted).abs().max() <= 2e-5 * wanted.abs().max()
