"""Intervals by resampling blocks of pictures.

Of the G blocks that hold pictures, G - 1 are drawn with replacement (Rao and Wu 1988: G - 1 makes the
variance of a mean unbiased), and every measure is computed from the sums of those drawn. Measures that are
biased in small samples (Fréchet distances, codebook usage) are more so in a resample, where pictures repeat:
the spread is therefore laid around the estimate, not around the mean of the resamples. It is widened as
Student's t of G - 1 degrees of freedom is wider than the normal distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.evaluation.tally import Totals

CONFIDENCE = 0.95
QUANTILE = 1.96  # of the normal distribution, for CONFIDENCE
MIN_BLOCKS = 5  # below this a spread between blocks says nothing
Measure = Callable[[Totals], float]


@dataclass(frozen=True)
class Estimate:
    """A measured value and the ends of its interval, which are None where it could not be found."""

    value: float
    low: float | None = None
    high: float | None = None


def estimates(
    sums: Mapping[str, Tensor], counts: Tensor, measures: Mapping[str, Measure], replicates: int
) -> dict[str, Estimate]:
    """Every measure of all pictures, with intervals from `replicates` resamples.

    `counts` (blocks,) is the number of pictures in each block. The same sums give the same intervals.
    """
    whole = Totals(sums, torch.ones(len(counts)))
    values = {name: measure(whole) for name, measure in measures.items()}
    # Two pictures a block let even a resample of one block have a covariance.
    filled = torch.nonzero(counts >= 2).flatten().numpy()
    if replicates == 0 or len(filled) < MIN_BLOCKS:
        return {name: Estimate(value) for name, value in values.items()}
    drawn: dict[str, list[float]] = {name: [] for name in measures}
    for weights in _resamples(filled, len(counts), replicates):
        totals = Totals(sums, weights)
        for name, measure in measures.items():
            drawn[name].append(measure(totals))
    # The first terms of the expansion of t's quantile (Abramowitz and Stegun 26.7.5)
    widening = 1 + (QUANTILE**2 + 1) / (4 * (len(filled) - 1))
    return {name: _interval(value, np.array(drawn[name]), widening) for name, value in values.items()}


def _resamples(filled: np.ndarray, blocks: int, replicates: int) -> Iterator[Tensor]:
    rng = np.random.default_rng(0)
    draws = len(filled) - 1
    for _ in range(replicates):
        chosen = rng.choice(filled, draws)
        yield torch.from_numpy(np.bincount(chosen, minlength=blocks)).double()


def _interval(value: float, drawn: np.ndarray, widening: float) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = (np.quantile(drawn, [tail, 1 - tail]) - drawn.mean()) * widening
    return Estimate(value, value + float(low), value + float(high))
