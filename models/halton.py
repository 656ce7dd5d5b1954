"""A fixed, evenly spread order in which the groups of a picture settle (NumPy).

The tokens follow a Halton sequence in bases 2 and 3 (Besnier et al., "Halton Scheduler For Masked Generative
Image Transformer", ICLR 2025): wherever it starts, the first tokens are spread over the whole picture, so
that those drawn together depend little on each other.

A sampling step knows no orders, only confidence = log P + Gumbel noise * noise temperature. An order is told
to it through both: uniforms that rise with the rank, and a noise temperature beside which log P vanishes.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from models.config import GeneratorConfig
from models.noise import Uniforms, step_uniforms
from models.sampling_config import SamplingConfig

Order = NDArray[np.int64]

# Neighbours among n groups are at least e / 2n apart in Gumbel noise: with 16,384 groups 10^15 once it is
# multiplied, which no log P reaches. The noise itself is below 17, so that no product overflows float32.
RANK_NOISE_TEMPERATURE = 2.0**64


def _scaled(numbers: Order, base: int, side: int) -> Order:
    """floor(side * radical inverse) of `numbers` in `base`, in integers."""
    mirrored, denominator = np.zeros_like(numbers), 1
    while numbers.any():
        mirrored = mirrored * base + numbers % base
        numbers = numbers // base
        denominator *= base
    return mirrored * side // denominator


def _window(side: int) -> int:
    """So many points in a row visit every cell of a grid of `side` by `side`, wherever they begin.

    With powers 2^a and 3^b of at least twice the side, a cell holds a box of 2^-a by 3^-b of which every
    2^a * 3^b points in a row visit each once.
    """
    return _power(2, 2 * side) * _power(3, 2 * side)


def _power(base: int, least: int) -> int:
    power = 1
    while power < least:
        power *= base
    return power


@cache
def halton_cells(side: int) -> Order:
    """The first points of the Halton sequence as cells row * side + column: two windows of them."""
    numbers = np.arange(2 * _window(side))
    cells = _scaled(numbers, 2, side) * side + _scaled(numbers, 3, side)
    cells.flags.writeable = False
    return cells


def token_order(side: int, start: float) -> Order:
    """All tokens of a grid, i64 (side^2,), as first visited from `start` in [0, 1) of a window."""
    window = _window(side)
    first = int(start * window)
    visited = halton_cells(side)[first : first + window]
    first_visits = np.unique(visited, return_index=True)[1]
    return visited[np.sort(first_visits)]


def group_order(side: int, splits: int, start: float) -> Order:
    """All groups, i64 (side^2 * splits,) of token * splits + group: one sweep over the tokens per group."""
    tokens = token_order(side, start)
    return np.concatenate([tokens * splits + group for group in range(splits)])


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
