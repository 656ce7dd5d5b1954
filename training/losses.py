"""Training losses of both stages (SPEC section 4)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.quantizer import QuantizerLosses
from training.config import TokenizerLossConfig


@dataclass(frozen=True)
class TokenizerLoss:
    """Scalar `total` to minimise, and the reconstruction error before its weight."""

    total: Tensor
    reconstruction: Tensor


def tokenizer_loss(
    images: Tensor, reconstruction: Tensor, quantizer: QuantizerLosses, step: int, config: TokenizerLossConfig
) -> TokenizerLoss:
    """Stage I without adversary: reconstruction, quantizer and, over the first steps, extra entropy loss."""
    distance = F.mse_loss if config.reconstruction_loss == "l2" else F.l1_loss
    error = distance(reconstruction.float(), images)
    annealing = max(0.0, 1 - step / config.entropy_annealing_steps) if config.entropy_annealing_steps else 0.0
    total = (
        config.reconstruction_weight * error
        + config.quantizer_weight * quantizer.total
        + annealing * config.entropy_annealing_factor * quantizer.entropy
    )
    return TokenizerLoss(total, error)


@dataclass(frozen=True)
class TokenLoss:
    """`total` to minimise; the rest is for reports. Accuracy is the mean group accuracy to the power of m."""

    total: Tensor
    masked: Tensor
    accuracy: Tensor
    masked_accuracy: Tensor


def token_loss(
    logits: Tensor, targets: Tensor, masks: Tensor, label_smoothing: float, sum_splits: bool
) -> TokenLoss:
    """Stage II: cross entropy over all groups, masked or not.

    `logits` f32 (B, N, m, V), `targets` i64 (B, N, m) in [0, V), `masks` bool (B, N, m).
    """
    splits = targets.shape[-1]
    each = F.cross_entropy(
        logits.flatten(0, 2), targets.flatten(), reduction="none", label_smoothing=label_smoothing
    ).view_as(targets)
    with torch.no_grad():
        correct = (logits.argmax(-1) == targets).float()
        masked_count = masks.sum().clamp_min(1)
        masked = (each * masks).sum() / masked_count
        masked_accuracy = ((correct * masks).sum() / masked_count) ** splits
    total = each.mean() * (splits if sum_splits else 1)
    return TokenLoss(total, masked, correct.mean() ** splits, masked_accuracy)
