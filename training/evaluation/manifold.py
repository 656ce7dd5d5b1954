"""Improved precision and recall: shares of pictures inside the other set's manifold.

Kynkäänniemi et al. 2019: the manifold of a set of features is the union of the balls around each feature
that reach its k-th nearest neighbour.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.validation import require

NEIGHBOURS = 3  # k of the paper
BLOCK = 1024  # rows and columns of the distance matrix that are in memory at a time
ROUNDING = 1e-12  # of a squared distance in float64, relative to the squared norms


def precision_recall(real: Tensor, fake: Tensor, neighbours: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """Whether each of `fake` (n, D) lies in the manifold of `real` (m, D), bool (n,), and the reverse, (m,).

    Their means are precision and recall. Needs more features than `neighbours` on both sides (ConfigError).
    """
    require(
        min(len(real), len(fake)) > neighbours,
        f"precision and recall need at least {neighbours + 1} pictures, got {len(real)} and {len(fake)}",
    )
    return (
        _inside(fake, real, _radii(real, neighbours)),
        _inside(real, fake, _radii(fake, neighbours)),
    )


def _radii(features: Tensor, neighbours: int) -> Tensor:
    """Squared distance (n,) of every feature to its k-th nearest other one."""
    parts = []
    for rows in torch.split(features, BLOCK):
        nearest = rows.new_empty(len(rows), 0, dtype=torch.float64)
        for columns in torch.split(features, BLOCK):
            # Itself is among them, at distance 0: hence one more.
            found = torch.cat([nearest, _squared_distances(rows, columns)], 1)
            nearest = found.topk(min(neighbours + 1, found.shape[1]), 1, largest=False).values
        parts.append(nearest[:, -1])
    return torch.cat(parts)


def _inside(features: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    parts = []
    for rows in torch.split(features, BLOCK):
        inside = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        for columns, limits in zip(torch.split(centres, BLOCK), torch.split(radii, BLOCK), strict=True):
            inside |= (_squared_distances(rows, columns) <= limits).any(1)
        parts.append(inside)
    return torch.cat(parts)


def _squared_distances(rows: Tensor, columns: Tensor) -> Tensor:
    """f64 (B, C); what rounding leaves of the distance between equal features becomes 0."""
    a, b = rows.double(), columns.double()
    norms = a.square().sum(1)[:, None] + b.square().sum(1)
    squares = norms - 2 * (a @ b.T)
    return squares.masked_fill(squares <= ROUNDING * norms, 0)
