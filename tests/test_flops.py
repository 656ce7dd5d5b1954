"""The formulas for arithmetic and weights against PyTorch's own count of the operations that run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.bundle import open_bundle
from models.config import GeneratorConfig, TokenizerConfig
from models.flops import Work, decoder_work, encoder_work, generator_work
from models.networks import build_generator, build_tokenizer
from models.presets import find_preset
from models.tokenizer import ConvTokenizer

FRUIT = open_bundle("fruit").manifest
SMALL = TokenizerConfig(
    hidden_channels=8,
    channel_mult=(1, 2, 2),
    num_resolutions=3,
    num_res_blocks=2,
    norm_groups=4,
    token_size=6,
)
TOKENIZERS = {
    "fruit": (FRUIT.tokenizer, FRUIT.image_size),
    "14 bit": (find_preset("maskbit_tokenizer_14bit").model.tokenizer, 256),
    "maskgit": (find_preset("maskgit_tokenizer").model.tokenizer, 256),
    "deeper decoder": (replace(SMALL, num_res_blocks_decoder=3), 32),
}
GENERATORS = {
    "fruit": FRUIT.generator,
    "14 bit": find_preset("maskbit_generator_14bit").model.generator,
    "embedded": GeneratorConfig(model_cls="bert", bits=6, hidden_dim=32, depth=2, heads=4, mlp_dim=48),
    "one group": GeneratorConfig(bits=10, hidden_dim=32, depth=1, heads=2, mlp_dim=40, codebook_splits=1),
}


def matrices(network: torch.nn.Module) -> int:
    """Numbers in the weights that products and convolutions read: no biases, norms or tables."""
    return sum(
        value.numel() for key, value in network.state_dict().items() if value.dim() > 1 and "_emb" not in key
    )


@pytest.mark.parametrize("name", GENERATORS)
def test_the_generators_flops_are_those_that_pytorch_counts(name: str) -> None:
    config = GENERATORS[name]
    assert config is not None
    with torch.device("meta"), torch.inference_mode():
        network = build_generator(config).eval()
        tokens = torch.zeros(3, config.num_tokens, config.codebook_splits, dtype=torch.int64)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            network(tokens, torch.zeros(3, dtype=torch.int64))
    work = generator_work(config)
    assert counter.get_total_flops() == 3 * work.flops
    tied = config.hidden_dim * config.codebook_splits * config.group_codes if name == "embedded" else 0
    biases = sum(bias.numel() for key, bias in network.state_dict().items() if key.startswith("bias."))
    assert work.weights == matrices(network) + tied - biases


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_tokenizers_flops_are_those_that_pytorch_counts(name: str) -> None:
    config, side = TOKENIZERS[name]
    encoder, decoder = encoder_work(config, side), decoder_work(config, side)
    assert encoder is not None
    assert decoder is not None
    with torch.device("meta"), torch.inference_mode():
        network = build_tokenizer(config).eval()
        assert isinstance(network, ConvTokenizer)
        with FlopCounterMode(display=False) as counter:
            quantized = network.encode(torch.zeros(2, 3, side, side))
        assert counter.get_total_flops() == 2 * encoder.flops
        with FlopCounterMode(display=False) as counter:
            network.decoder(quantized.codes)
        assert counter.get_total_flops() == 2 * decoder.flops
    assert encoder.weights + decoder.weights == matrices(network)


def test_the_original_vqgan_is_not_counted() -> None:
    config = find_preset("taming_vqgan_tokenizer").model.tokenizer
    assert encoder_work(config, 256) is None
    assert decoder_work(config, 256) is None


def test_weights_are_read_once_a_call_and_activations_once_a_row() -> None:
    work = Work(flops=10, weights=100, moved=7)
    assert work.bytes(rows=1, size=4) == 428
    assert work.bytes(rows=3, size=2) == 242
