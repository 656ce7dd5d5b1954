"""The odds of a runtime's draws, found through its steps alone: they stand for its logits, which it keeps.

For each group and a category c the uniform is sought, by halving, below which a draw falls below c. Its log
odds are log sum exp(logits below c) - log sum exp(the others), in the units of logits over temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.runtime.base import Integers, Runtime, StepBatch

REACH, HALVINGS = 4.0, 20  # log odds are sought in [-REACH, REACH], to 4e-6
OPEN = 3.0  # a draw is open where its log odds are within it: 5 to 95 %

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class DrawOdds:
    """Log odds (B, N, m), as one runtime has them, of draws below `categories` i64 (B, N, m) in `batch`."""

    batch: StepBatch
    categories: Integers
    log_odds: Reals

    @classmethod
    def of(cls, runtime: Runtime, batch: StepBatch, tick: Callable[[], None]) -> DrawOdds:
        """The odds below the median category of each group, or below the second where that is the first."""
        even = np.full_like(batch.category_uniforms, 0.5)
        categories = np.maximum(runtime.step(replace(batch, category_uniforms=even)).drawn, 1)
        return cls(batch, categories, log_odds(runtime, batch, categories, tick))

    def errors(self, runtime: Runtime, tick: Callable[[], None]) -> Reals:
        """How much higher each open draw's log odds are with `runtime`, (n,)."""
        found = log_odds(runtime, self.batch, self.categories, tick)
        # A group that is settled already stays on one side of its category, whatever the uniform: not open.
        errors: Reals = (found - self.log_odds)[np.abs(self.log_odds) < OPEN]
        return errors


def log_odds(runtime: Runtime, batch: StepBatch, categories: Integers, tick: Callable[[], None]) -> Reals:
    """Log odds (B, N, m) that the groups of `batch` are drawn below `categories`."""
    low, high = np.full(categories.shape, -REACH), np.full(categories.shape, REACH)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        uniforms = (1 / (1 + np.exp(-middle))).astype(np.float32)
        below = runtime.step(replace(batch, category_uniforms=uniforms)).drawn < categories
        low, high = np.where(below, middle, low), np.where(below, high, middle)
        tick()
    found: Reals = (low + high) / 2
    return found
