"""Training batches from a token cache, as a stream that can start at any batch.

Batch k is a function of (cache, seed, k) alone. Each epoch shows every picture once, in a new order, and its
variants take turns, from one on that the seed decides, so that none returns before all others were seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from models.bits import Indices
from models.config import GeneratorConfig
from training.cache.token_cache import TokenCache, check_fits, open_cache, unpack_groups
from training.data.config import DatasetConfig

if TYPE_CHECKING:
    from models.tokenizer import Tokenizer

ORDER, VARIANT = 1, 2  # what the random numbers are for


@dataclass(frozen=True)
class TokenBatch:
    """`groups` i64 (B, N, m); `labels` i64 (B,)."""

    groups: Tensor
    labels: Tensor


class CacheOrder:
    """Which variant of which picture stands at a position of the endless stream."""

    def __init__(self, pictures: int, variants: int, seed: int) -> None:
        self.pictures = pictures
        self.variants = variants
        self.seed = seed
        self.first = np.random.default_rng([VARIANT, seed]).integers(variants, size=pictures, dtype=np.int32)
        self._epoch_order = lru_cache(maxsize=1)(self._permutation)

    def _permutation(self, epoch: int) -> Indices:
        return np.random.default_rng([ORDER, self.seed, epoch]).permutation(self.pictures)

    def at(self, positions: range) -> tuple[Indices, Indices]:
        """Pictures i64 (n,) and variants i64 (n,) at n `positions`, which may lie in several epochs."""
        epochs, slots = np.divmod(np.asarray(positions, dtype=np.int64), self.pictures)
        pictures = np.concatenate(
            [self._epoch_order(int(epoch))[slots[epochs == epoch]] for epoch in np.unique(epochs)]
        )
        return pictures, (self.first[pictures] + epochs) % self.variants


def cached_batches(
    path: Path | str,
    data: DatasetConfig,
    model: GeneratorConfig,
    tokenizer: Tokenizer,
    batch_size: int,
    seed: int,
    start: int,
    *,
    rank: int = 0,
    world: int = 1,
) -> Iterator[TokenBatch]:
    """Endless batches from batch `start` on; one is `batch_size` pictures in each of `world` processes.

    Process `rank` gets its consecutive share, so that all together see the batches that one process with the
    whole size would: a run may go on with other processes, as long as a step takes as many pictures. Raises
    ConfigError, at once, for a cache that is damaged, does not fit `model`, or holds other crops than those
    of `data` or the tokens of another tokenizer.
    """
    path = Path(path)
    cache = open_cache(path)
    check_fits(cache, path, data, model, tokenizer)
    order = CacheOrder(len(cache), cache.plan.variants, seed)
    firsts = ((batch * world + rank) * batch_size for batch in count(start))
    return (
        read_batch(cache, *order.at(range(first, first + batch_size)), model.codebook_splits)
        for first in firsts
    )


def read_batch(cache: TokenCache, pictures: Indices, variants: Indices, splits: int) -> TokenBatch:
    """The given variants of `pictures`, in groups."""
    packed, labels = cache.read(pictures, variants)
    groups = unpack_groups(packed, cache.plan.num_tokens, cache.plan.bits, splits)
    return TokenBatch(torch.from_numpy(groups), torch.from_numpy(labels))
