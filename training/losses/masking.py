"""Which groups the generator must guess in a training step, and without which class (SPEC section 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import InputError
from training.losses.config import GeneratorLossConfig
from training.losses.token_loss import group_weights


def mask_ratios(uniforms: Tensor, schedule: str) -> Tensor:
    """Mask ratio per picture of `uniforms` f32 (B,) in [0, 1), through the training schedule."""
    if schedule == "arccos":
        return torch.arccos(uniforms) / (math.pi / 2)
    if schedule == "cosine":
        return torch.cos(uniforms * (math.pi / 2))
    if schedule == "linear":
        return 1 - uniforms
    if schedule == "square":
        return 1 - uniforms.square()
    if schedule == "root":
        return 1 - uniforms.sqrt()
    raise InputError(f"mask schedule {schedule!r} is unknown")


@dataclass(frozen=True)
class Masking:
    """What is hidden of each picture, and how much each group counts in the loss.

    `groups` bool (B, N, m) are masked, `classes` bool (B,) are hidden, `weights` f32 (B, N, m).
    """

    groups: Tensor
    classes: Tensor
    weights: Tensor

    def rows(self, start: int, count: int, device: torch.device) -> Masking:
        """The masking of `count` pictures from number `start` on, on `device`."""
        part = slice(start, start + count)
        return Masking(
            self.groups[part].to(device), self.classes[part].to(device), self.weights[part].to(device)
        )


def draw_masking(
    shape: tuple[int, int, int], config: GeneratorLossConfig, batches: int, noise: torch.Generator
) -> Masking:
    """Masking of the (B, N, m) groups of a whole optimizer step, which is divided into `batches`.

    One ratio is drawn per picture, and every group is masked independently with it.
    """
    ratios = mask_ratios(torch.rand(shape[0], generator=noise), config.train_mask_schedule_strategy)
    groups = torch.rand(shape, generator=noise) < ratios[:, None, None]
    classes = torch.rand(shape[0], generator=noise) < config.class_label_dropout
    return Masking(groups, classes, group_weights(groups, config.loss_on, config.unmasked_weight, batches))
