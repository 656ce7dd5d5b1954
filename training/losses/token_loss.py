"""Masked-token loss of stage II (SPEC section 4)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class TokenLoss:
    """`total` to minimise; the rest is for reports. Accuracy is the mean group accuracy to the power of m.

    With `sum_splits` both losses are those of a whole token: m times the mean over groups.
    """

    total: Tensor
    masked: Tensor
    accuracy: Tensor
    masked_accuracy: Tensor


def group_weights(masks: Tensor, loss_on: str, unmasked_weight: float, batches: int) -> Tensor:
    """How much each group's loss counts, f32 like `masks` bool (B, N, m) of a whole optimizer step.

    They sum to the number of `batches` that the step is divided into, so that the mean of the batches' losses
    is the weighted mean over all groups, whatever each batch's own share of masked groups is.
    """
    if loss_on == "all":
        weights = torch.ones(masks.shape)
    elif loss_on == "masked":
        weights = masks.float()
    else:
        weights = torch.where(masks, 1.0, unmasked_weight)
    return weights * (batches / weights.sum().clamp_min(1e-12))


def token_loss(
    logits: Tensor,
    targets: Tensor,
    masks: Tensor,
    weights: Tensor,
    label_smoothing: float,
    sum_splits: bool,
) -> TokenLoss:
    """Stage II: cross entropy over groups, summed with `weights`.

    `logits` f32 (B, N, m, V), `targets` i64 (B, N, m) in [0, V), `masks` bool and `weights` f32 (B, N, m).
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
    return TokenLoss((each * weights).sum(), masked, correct.mean() ** splits, masked_accuracy)
