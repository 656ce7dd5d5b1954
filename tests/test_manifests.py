"""Every published checkpoint has the keys and shapes of the network that its config builds."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.checkpoint import load_into
from models.errors import CheckpointError
from models.networks import build_generator, build_tokenizer
from models.presets import find_preset

GOLDEN = Path(os.environ.get("MASKBIT_GOLDEN_DIR") or Path(__file__).parent / "golden")
MANIFESTS: dict[str, dict[str, Any]] = json.loads(
    next(p for p in (GOLDEN / "manifests.json", GOLDEN.parent / "manifests.json") if p.exists()).read_text()
)


def network_of(name: str) -> nn.Module:
    """The published model, without memory for its weights."""
    model = find_preset(name).model
    with torch.device("meta"):
        return (
            build_tokenizer(model.tokenizer) if model.generator is None else build_generator(model.generator)
        )


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_published_checkpoint_has_our_keys_and_shapes(name: str) -> None:
    published = MANIFESTS[name]
    own = {key: list(value.shape) for key, value in network_of(name).state_dict().items()}
    assert own == published["parameters"]
    assert sum(torch.Size(shape).numel() for shape in own.values()) == published["total"]


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
