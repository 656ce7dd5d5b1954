"""The factories, and what the families of networks have in common."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.config import GeneratorConfig, TokenizerConfig
from models.errors import ConfigError
from models.networks import build_generator, build_tokenizer
from models.tokenizer import ConvTokenizer

SMALL = TokenizerConfig(
    hidden_channels=8,
    channel_mult=(1, 2, 3),
    num_resolutions=3,
    num_res_blocks=1,
    norm_groups=4,
    quantizer_type="lookup",
    codebook_size=32,
    token_size=4,
)
TINY = GeneratorConfig(
    bits=6, hidden_dim=16, depth=2, heads=2, mlp_dim=24, img_size=8, input_stride=2, nclass=3
)


def test_maskgit_is_vqgan_plus_with_its_decoder_counted_from_the_other_end() -> None:
    plain = build_tokenizer(SMALL).eval()
    legacy = build_tokenizer(replace(SMALL, model_class="maskgit")).eval()
    weights = dict(plain.state_dict())
    for key in [key for key in weights if key.startswith("decoder.up.")]:
        level = int(key.split(".")[2])
        weights[key.replace(f"up.{level}.", f"up-{2 - level}.")] = weights.pop(key)
    legacy.load_state_dict({key.replace("up-", "up."): value for key, value in weights.items()})
    indices = torch.randint(32, (2, 3, 5))
    assert torch.equal(legacy.decode_indices(indices), plain.decode_indices(indices))


@pytest.mark.parametrize("model_class", ["vqgan+", "maskgit", "taming"])
@pytest.mark.parametrize("with_conv", [True, False])
def test_every_tokenizer_keeps_to_its_stride_on_any_grid(model_class: str, with_conv: bool) -> None:
    config = replace(SMALL, model_class=model_class, sample_with_conv=with_conv)
    network = build_tokenizer(config).eval()
    images = torch.rand(2, 3, 3 * config.stride, 5 * config.stride)
    with torch.no_grad():
        quantized = network.encode(images)
        assert network.decode_indices(quantized.indices).shape == images.shape
    assert quantized.indices.shape == (2, 3, 5)
    assert quantized.codes.shape == (2, 4, 3, 5)
    assert quantized.losses is None


def test_taming_is_not_for_training() -> None:
    with pytest.raises(ConfigError, match="cannot be trained"):
        ConvTokenizer(replace(SMALL, model_class="taming"))


@pytest.mark.parametrize("model_cls", ["lfq_bert", "bert"])
@pytest.mark.parametrize("splits", [1, 2, 3])
@pytest.mark.parametrize("prenorm", [True, False])
def test_every_generator_learns_its_tokens(model_cls: str, splits: int, prenorm: bool) -> None:
    """A few steps on one batch bring the loss below that of a guess, and every parameter takes part."""
    torch.manual_seed(0)
    config = replace(TINY, model_cls=model_cls, codebook_splits=splits, use_prenorm=prenorm, dropout=0.0)
    network = build_generator(config)
    tokens = torch.randint(config.group_codes, (4, config.num_tokens, splits))
    tokens[2:, 1::2] = config.group_codes
    targets = torch.randint(config.group_codes, tokens.shape)
    labels = torch.tensor([0, 1, 2, config.nclass])
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        logits = network(tokens, labels)
        assert logits.shape == (*tokens.shape, config.group_codes)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 2), targets.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(config.bits / splits * 0.6931, rel=0.1)
    assert losses[-1] < 0.85 * losses[0]


@pytest.mark.parametrize("model_cls", ["lfq_bert", "bert"])
def test_fresh_weights_are_small_and_fresh_biases_zero(model_cls: str) -> None:
    """The specification's initialisation."""
    network = build_generator(replace(TINY, model_cls=model_cls, hidden_dim=64))
    for name, value in network.state_dict().items():
        if "norm" in name or name.startswith(("first_layer", "last_layer.2")):
            continue
        if "bias" in name:
            assert not value.any(), name
        else:
            assert 0.015 < value.std() < 0.025, name
