"""Floating-point operations of a step of stage I."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from models.tokenizer import ConvTokenizer
from training.throughput import count_flops


def tokenizer_flops(tokenizer: ConvTokenizer, perceptual: nn.Module | None, resolution: int) -> int:
    """Of the tokenizer and its perceptual loss for one picture, forward and backward."""
    parameter = next(tokenizer.parameters())
    image = torch.zeros(1, tokenizer.config.num_channels, resolution, resolution, device=parameter.device)

    def step() -> None:
        reconstruction, _ = tokenizer(image)
        distance = reconstruction if perceptual is None else perceptual(image, reconstruction)
        distance.sum().backward()

    flops = count_flops(step)
    tokenizer.zero_grad(set_to_none=True)
    return flops


def discriminator_flops(discriminator: nn.Module, channels: int, resolution: int) -> int:
    """Of the discriminator for one picture: one pass for the tokenizer's sake and two for its own."""
    device = next(discriminator.parameters()).device
    image = torch.zeros(1, channels, resolution, resolution, device=device)
    copy = deepcopy(discriminator).eval()
    own = count_flops(lambda: copy(image).sum().backward())
    copy.requires_grad_(False)
    image.requires_grad_()
    return count_flops(lambda: copy(image).sum().backward()) + 2 * own
