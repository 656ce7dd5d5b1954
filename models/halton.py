"""A fixed, evenly spread order in which the groups of a picture settle (NumPy).

Groups follow a Halton sequence over row, column and place in the token, in bases 2, 3 and 5: wherever it
starts, the first groups are spread over the whole picture, so that those drawn together depend little on each
other. Besnier et al., "Halton scheduler for masked generative image transformers" (ICLR 2025), do so with
tokens.

A sampling step knows no orders, only confidence = log P + Gumbel noise * noise temperature. An order is told
to it through both: uniforms that rise with the rank, and a noise temperature beside which log P vanishes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.config import GeneratorConfig
from models.noise import Uniforms, step_uniforms
from models.sampling_config import SamplingConfig

Order = NDArray[np.int64]

# Neighbours among n groups are at least e / 2n apart in Gumbel noise: with 16,384 groups 10^15 once it is
# multiplied, which no log P reaches. The noise itself is below 17, so that no product overflows float32.
RANK_NOISE_TEMPERATURE = 2.0**64

STARTS = 1 << 16  # places of the sequence where an order may start


def _scaled(numbers: Order, base: int, size: int) -> Order:
    """floor(size * radical inverse) of `numbers` in `base`, in integers."""
    mirrored, denominator = np.zeros_like(numbers), 1
    while numbers.any():
        mirrored = mirrored * base + numbers % base
        numbers = numbers // base
        denominator *= base
    return mirrored * size // denominator


def halton_groups(first: int, count: int, side: int, splits: int) -> Order:
    """`count` points of the Halton sequence from number `first` on, as groups i64: token * splits + place."""
    numbers = np.arange(first, first + count)
    tokens = _scaled(numbers, 2, side) * side + _scaled(numbers, 3, side)
    return tokens * splits + _scaled(numbers, 5, splits)


def group_order(side: int, splits: int, start: float) -> Order:
    """All groups of a picture, i64 (side^2 * splits,), as first visited from `start` in [0, 1) of STARTS.

    Every group is visited: its box holds one of 2^-a by 3^-b by 5^-c for some a, b and c, which one of every
    2^a * 3^b * 5^c points in a row visits.
    """
    groups = side**2 * splits
    count = 4 * groups
    while True:
        visited = halton_groups(int(start * STARTS), count, side, splits)
        first_visits = np.unique(visited, return_index=True)[1]
        if len(first_visits) == groups:
            return visited[np.sort(first_visits)]
        count *= 2


def rank_uniforms(order: Order) -> Uniforms:
    """Uniforms f32 (n,) by group: the earlier a group comes in `order`, the larger, exact and in (0, 1).

    The k-th of n groups gets (n - k - 1/2) / 2^p with n <= 2^p.
    """
    count = len(order)
    uniforms = np.empty(count, dtype=np.float32)
    uniforms[order] = (np.arange(count, 0, -1) - 0.5) / (1 << (count - 1).bit_length())
    return uniforms


def group_ranks(config: SamplingConfig, generator: GeneratorConfig, seed: int) -> Uniforms | None:
    """Confidence uniforms f32 (N, m) of all steps of a picture; None where confidence gives the order.

    The first confidence uniform of step 0, which a fixed order leaves unused, tells where the order starts.
    """
    if config.group_order == "confidence":
        return None
    shape = (generator.num_tokens, generator.codebook_splits)
    start = float(step_uniforms(seed, 0, shape)[1].flat[0])
    return rank_uniforms(group_order(generator.grid, generator.codebook_splits, start)).reshape(shape)


def ordered_uniforms(
    seed: int, step: int, shape: tuple[int, ...], ranks: Uniforms | None
) -> tuple[Uniforms, Uniforms]:
    """`step_uniforms`, but that `ranks` of a fixed order take the place of those for confidence."""
    categories, confidence = step_uniforms(seed, step, shape)
    return categories, confidence if ranks is None else ranks
