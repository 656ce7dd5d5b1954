"""The Fréchet distance between two sets of features, from their means and covariances."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Mean f64 (D,) and unbiased covariance f64 (D, D) of `count` features."""

    count: int
    mean: Tensor
    covariance: Tensor


def moments_of_sums(count: float, total: Tensor, outer: Tensor) -> Moments:
    """Moments from the sums over n features x: n, of x f64 (D,), of x xᵀ f64 (D, D); n must be above 1."""
    mean = total / count
    covariance = (outer - count * torch.outer(mean, mean)) / (count - 1)
    return Moments(round(count), mean, covariance)


def moments_of(features: Tensor) -> Moments:
    """Moments of `features` (n, D)."""
    x = features.double()
    return moments_of_sums(len(x), x.sum(0), x.T @ x)


class FrechetReference:
    """One side of the distance, whose matrix root is taken once (Heusel et al. 2017, equation 6)."""

    def __init__(self, moments: Moments, device: torch.device | str = "cpu") -> None:
        self.moments = moments
        self.device = torch.device(device)
        values, vectors = torch.linalg.eigh(moments.covariance.to(self.device))
        self._root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T

    def distance(self, moments: Moments) -> float:
        """|m₁ − m₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½), at least 0.

        The eigenvalues of C₁ C₂ are those of the symmetric C₁^½ C₂ C₁^½, which stays accurate where
        covariances are singular, as they are with fewer pictures than features.
        """
        own = self.moments
        covariance = moments.covariance.to(self.device)
        eigenvalues = torch.linalg.eigvalsh(self._root @ covariance @ self._root)
        shift = (own.mean - moments.mean).square().sum()
        traces = own.covariance.trace() + moments.covariance.trace()
        return max(float(shift + traces) - 2 * float(eigenvalues.clamp_min(0).sqrt().sum()), 0.0)


def frechet_distance(first: Moments, second: Moments) -> float:
    """The Fréchet distance of two sets of features."""
    return FrechetReference(first).distance(second)
