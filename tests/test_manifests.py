"""Every published checkpoint has the keys and shapes of the network that its config builds."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.checkpoint import load_into
from models.config import GeneratorConfig, TokenizerConfig
from models.errors import CheckpointError
from models.generator import LfqBert
from models.tokenizer import ConvTokenizer

GOLDEN = Path(os.environ.get("MASKBIT_GOLDEN_DIR") or Path(__file__).parent / "golden")
MANIFESTS: dict[str, dict[str, Any]] = json.loads(
    next(p for p in (GOLDEN / "manifests.json", GOLDEN.parent / "manifests.json") if p.exists()).read_text()
)
LATER = ("taming_vqgan_tokenizer", "maskgit_tokenizer")


def network_of(name: str) -> nn.Module:
    """The published model, without memory for its weights."""
    with torch.device("meta"):
        if name.startswith("maskbit_generator_"):
            return LfqBert(GeneratorConfig(bits=bits_of(name)))
        if name.startswith("maskbit_tokenizer_"):
            return ConvTokenizer(TokenizerConfig(token_size=bits_of(name), codebook_size=4096))
        if name == "vqgan_plus_10bit":
            return ConvTokenizer(TokenizerConfig(quantizer_type="lookup", codebook_size=1024, token_size=256))
        if name == "vqgan_plus_12bit":
            return ConvTokenizer(TokenizerConfig(quantizer_type="lookup", codebook_size=4096, token_size=64))
    pytest.fail(f"nothing builds {name}; write how, or list it in LATER")


def bits_of(name: str) -> int:
    return int(name.rpartition("_")[2].removesuffix("bit"))


@pytest.mark.parametrize("name", [name for name in MANIFESTS if name not in LATER])
def test_a_published_checkpoint_has_our_keys_and_shapes(name: str) -> None:
    published = MANIFESTS[name]
    own = {key: list(value.shape) for key, value in network_of(name).state_dict().items()}
    assert own == published["parameters"]
    assert sum(torch.Size(shape).numel() for shape in own.values()) == published["total"]


def test_the_models_that_come_later_are_published_ones() -> None:
    assert set(LATER) <= set(MANIFESTS)


def test_published_buffers_are_accepted_and_nothing_else_is() -> None:
    """On the 18-bit models, whose code book buffer is the largest."""
    for name in ("maskbit_generator_18bit", "maskbit_tokenizer_18bit"):
        buffers = MANIFESTS[name]["buffers"]
        assert buffers
        network = nn.Linear(1, 1)
        weights = dict(network.state_dict())
        load_into(network, {**weights, **{key: torch.zeros(shape) for key, shape in buffers.items()}}, name)
        with pytest.raises(CheckpointError, match="unexpected codebook"):
            load_into(network, {**weights, "codebook": torch.zeros(1)}, name)
