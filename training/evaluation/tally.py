"""Sums over pictures, kept apart for blocks of pictures: what every measure and its interval come from.

Memory depends on the number of blocks and of features, not on the number of pictures. Sums of several
processes or sittings add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

PENDING = (
    1024  # features that wait for their products, since adding to a large matrix costs more than they do
)


class Tally:
    """Named sums, each f64 (blocks, ...) on the CPU."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._sums: dict[str, Tensor] = {}
        self._pending: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def add(self, name: str, blocks: Tensor, values: Tensor) -> None:
        """Add `values` (B, ...) of pictures that belong to `blocks` i64 (B,)."""
        values = values.detach().double().cpu()
        self._sum(name, values.shape[1:]).index_add_(0, blocks, values)

    def add_counts(self, name: str, blocks: Tensor, codes: Tensor, size: int) -> None:
        """Count the `codes` i64 (B, n), in [0, size), of pictures that belong to `blocks` i64 (B,)."""
        flat = (blocks[:, None] * size + codes.cpu().flatten(1)).flatten()
        counts = torch.bincount(flat, minlength=self.blocks * size).view(self.blocks, size)
        self._sum(name, (size,)).add_(counts)

    def add_moments(self, name: str, blocks: Tensor, features: Tensor) -> None:
        """Add `features` (B, D) to `name` and their products x xᵀ, upper halves alone, to `name outer`."""
        self.add(name, blocks, features)
        waiting = self._pending.setdefault(f"{name} outer", [])
        waiting.append((blocks, features.detach()))
        if sum(len(part) for part, _ in waiting) >= PENDING:
            self._multiply(f"{name} outer")

    def sums(self) -> dict[str, Tensor]:
        """All sums by name."""
        for name in list(self._pending):
            self._multiply(name)
        return self._sums

    def merge(self, sums: Mapping[str, Tensor]) -> None:
        """Add the sums of another tally of as many blocks."""
        own = self.sums()
        for name, values in sums.items():
            own[name] = own[name] + values if name in own else values

    def put(self, block: int, sums: Mapping[str, Tensor]) -> None:
        """Add the sums of a tally of one block to the block number `block`."""
        for name, values in sums.items():
            self._sum(name, values.shape[1:])[block] += values[0]

    def _sum(self, name: str, shape: torch.Size | tuple[int, ...]) -> Tensor:
        if name not in self._sums:
            self._sums[name] = torch.zeros(self.blocks, *shape, dtype=torch.float64)
        return self._sums[name]

    def _multiply(self, name: str) -> None:
        waiting = self._pending.pop(name)
        blocks = torch.cat([part for part, _ in waiting])
        features = torch.cat([part for _, part in waiting]).double()
        upper = upper_half(features.shape[1])
        sums = self._sum(name, (len(upper),))
        for block in torch.unique(blocks).tolist():
            chosen = features[(blocks == block).to(features.device)]
            sums[block] += (chosen.T @ chosen).flatten().cpu()[upper]


class Totals:
    """Sums over all blocks, each block taken `weights` (blocks,) times."""

    def __init__(self, sums: Mapping[str, Tensor], weights: Tensor) -> None:
        self._sums = sums
        self._weights = weights.double()

    def __getitem__(self, name: str) -> Tensor:
        total: Tensor = torch.tensordot(self._weights, self._sums[name], dims=1)
        return total

    def number(self, name: str) -> float:
        """The scalar sum `name`."""
        return self[name].item()

    def square(self, name: str) -> Tensor:
        """The sum of products `name` as the symmetric matrix (D, D) that it is half of."""
        half = self[name]
        side = int(((8 * len(half) + 1) ** 0.5 - 1) / 2)
        matrix = half.new_zeros(side * side)
        matrix[upper_half(side)] = half
        upper = matrix.view(side, side)
        return upper + upper.triu(1).T


@cache
def upper_half(side: int) -> Tensor:
    """Flat positions of the upper triangle of a `side` x `side` matrix, row by row."""
    rows, columns = torch.triu_indices(side, side).unbind()
    return rows * side + columns
