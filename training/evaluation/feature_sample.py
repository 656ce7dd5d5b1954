"""A bounded random sample of features, for measures that compare pictures with pictures."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def priorities(indices: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A pseudo-random number for every picture index (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        x = (indices.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class FeatureSample:
    """Features of the `limit` pictures with the smallest priorities.

    Which ones these are depends on the picture indices alone: not on their order, nor on which process or
    sitting saw them, so that samples merge.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._indices: list[NDArray[np.int64]] = []
        self._features: list[NDArray[np.float32]] = []

    def add(self, indices: NDArray[np.int64], features: NDArray[np.float32]) -> None:
        """Offer pictures `indices` (B,) with their `features` (B, D)."""
        self._indices.append(indices)
        self._features.append(features)
        if sum(map(len, self._indices)) > 2 * self.limit:
            self._prune()

    def content(self) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """Indices (n,) and features (n, D) of the sample in the order of their priorities; None at first."""
        if not self._indices:
            return None
        self._prune()
        return self._indices[0], self._features[0]

    def tensor(self) -> Tensor:
        """The features f32 (n, D)."""
        self._prune()
        return torch.from_numpy(self._features[0])

    def _prune(self) -> None:
        indices, features = np.concatenate(self._indices), np.concatenate(self._features)
        order = np.argsort(priorities(indices), kind="stable")[: self.limit]
        self._indices, self._features = [indices[order]], [features[order]]
