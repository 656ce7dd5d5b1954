"""The Inception Score from sums over pictures (Salimans et al. 2016), over one split."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def score_terms(logits: Tensor) -> tuple[Tensor, Tensor]:
    """What the score sums of `logits` (B, C): Σ p log p, f64 (B,), and the probabilities p, f64 (B, C)."""
    log_p = torch.log_softmax(logits.double(), 1)
    p = log_p.exp()
    return (p * log_p).sum(1), p


def inception_score(count: float, negentropy: float, total: Tensor) -> float:
    """exp of the mean KL(p(y|x) ‖ p(y)), from the sums over `count` pictures of the two `score_terms`."""
    mean = total / count
    return math.exp(negentropy / count - float(torch.special.xlogy(mean, mean).sum()))
