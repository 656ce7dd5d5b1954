"""The tokenizer whose tokens a generator learns: trained before, and unchanged from then on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.bundle import TOKENIZER_WEIGHTS
from models.config import GeneratorConfig
from models.networks import build_tokenizer
from models.runtime.torch_runtime import full_precision
from models.tokenizer import Tokenizer
from training.initial_weights import load_initial_weights, read_source
from training.recipe import GeneratorRecipe


def tokenizer_weights(recipe: GeneratorRecipe) -> Mapping[str, Tensor]:
    """Weights of the tokenizer that `experiment.vqgan_checkpoint` names."""
    return read_source(recipe.experiment.vqgan_checkpoint, TOKENIZER_WEIGHTS).weights


def load_frozen_tokenizer(recipe: GeneratorRecipe, device: torch.device) -> Tokenizer:
    """The recipe's tokenizer on `device`, in eval mode and without gradients."""
    network = build_tokenizer(recipe.tokenizer)
    load_initial_weights(network, recipe.tokenizer, recipe.experiment.vqgan_checkpoint, TOKENIZER_WEIGHTS)
    return network.to(device).eval().requires_grad_(False)


@torch.no_grad()
def groups_of(tokenizer: Tokenizer, images: Tensor, config: GeneratorConfig) -> Tensor:
    """Token groups i64 (B, N, m) of `images` f32 (B, 3, H, W) in [0, 1], always in full fp32."""
    with full_precision():
        indices = tokenizer.encode(images).indices.flatten(1)[..., None]
    shifts = torch.arange(config.codebook_splits, device=images.device) * config.group_bits
    return (indices >> shifts) & (config.group_codes - 1)
