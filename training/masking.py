"""Which groups the generator must guess in a training step (SPEC section 4)."""

import math

import torch
from torch import Tensor

from models.errors import InputError


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


def random_masks(shape: torch.Size | tuple[int, int, int], schedule: str, device: torch.device) -> Tensor:
    """Masks bool (B, N, m): one ratio per picture, every group masked independently with that probability."""
    ratios = mask_ratios(torch.rand(shape[0], device=device), schedule)
    return torch.rand(shape, device=device) < ratios[:, None, None]


def drop_classes(labels: Tensor, probability: float, no_class: int) -> Tensor:
    """A copy of `labels` i64 (B,) in which each is `no_class` with `probability`."""
    dropped = torch.rand(labels.shape, device=labels.device) < probability
    return torch.where(dropped, no_class, labels)
