"""Training losses of both stages (SPEC section 4)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.quantizer import QuantizerLosses
from training.config import TokenizerLossConfig, TokenizerRecipe


@dataclass(frozen=True)
class TokenizerLoss:
    """Scalar `total` to minimise, and the reconstruction error before its weight."""

    total: Tensor
    reconstruction: Tensor


def entropy_annealing(step: int, recipe: TokenizerRecipe) -> float:
    """Factor of the extra entropy loss at 0-based `step`: falls linearly to 0; lookup-free only."""
    steps = recipe.losses.entropy_annealing_steps
    if step >= steps or recipe.model.quantizer_type != "lookup-free":
        return 0.0
    return recipe.losses.entropy_annealing_factor * (1 - step / steps)


def tokenizer_loss(
    images: Tensor,
    reconstruction: Tensor,
    quantizer: QuantizerLosses,
    annealing: float,
    config: TokenizerLossConfig,
) -> TokenizerLoss:
    """Stage I without adversary: reconstruction, quantizer and `annealing` times the entropy loss."""
    distance = F.mse_loss if config.reconstruction_loss == "l2" else F.l1_loss
    error = distance(reconstruction.float(), images)
    total = (
        config.reconstruction_weight * error
        + config.quantizer_weight * quantizer.total
        + annealing * quantizer.entropy
    )
    return TokenizerLoss(total, error)


@dataclass(frozen=True)
class TokenLoss:
    """`total` to minimise; the rest is for reports. Accuracy is the mean group accuracy to the power of m.

    With `sum_splits` both losses are those of a whole token: m times the mean over groups.
    """

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
    if sum_splits:
        each = each * splits
    with torch.no_grad():
        correct = (logits.argmax(-1) == targets).float()
        masked_count = masks.sum().clamp_min(1)
        masked = (each * masks).sum() / masked_count
        masked_accuracy = ((correct * masks).sum() / masked_count) ** splits
    return TokenLoss(each.mean(), masked, correct.mean() ** splits, masked_accuracy)
