"""The measures as functions of sums over pictures, by the names that reports use."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from training.evaluation import codebook
from training.evaluation.bootstrap import Measure
from training.evaluation.feature_sample import FeatureSample
from training.evaluation.frechet import FrechetReference
from training.evaluation.inception_score import inception_score
from training.evaluation.manifold import precision_recall
from training.evaluation.reference import Reference, side_moments
from training.evaluation.tally import Tally, Totals

PAIRS = "pairs"  # prefix of sums over pairs of a picture and its reconstruction


def mean_measures(names: Iterable[str], prefix: str, count: str) -> dict[str, Measure]:
    """Means of the sums `prefix` + name over the pictures that `count` sums."""

    def mean(name: str) -> Measure:
        return lambda totals: totals.number(f"{prefix} {name}") / totals.number(count)

    return {name: mean(name) for name in names}


def codebook_measures() -> dict[str, Measure]:
    """Share of used codes and entropy in bits."""
    return {
        "codebook_usage": lambda totals: codebook.usage(totals[f"{PAIRS} codes"]),
        "codebook_entropy_bits": lambda totals: codebook.entropy_bits(totals[f"{PAIRS} codes"]),
    }


def score_measure(side: str) -> Measure:
    """Inception Score of the pictures of `side`."""

    def measure(totals: Totals) -> float:
        return inception_score(
            totals.number(f"{side} count"),
            totals.number(f"{side} negentropy"),
            totals[f"{side} probabilities"],
        )

    return measure


def distance_measure(reference: Reference, side: str, kind: str, device: torch.device) -> Measure:
    """Fréchet distance of the features `kind` of `side` from fixed reference statistics."""
    fixed = FrechetReference(reference.moments[kind], device)
    return lambda totals: fixed.distance(side_moments(totals, side, kind))


def paired_distance_measure(kind: str, device: torch.device) -> Measure:
    """Fréchet distance between both sides of the same pictures, which resampling draws together."""

    def measure(totals: Totals) -> float:
        real = FrechetReference(side_moments(totals, "real", kind), device)
        return real.distance(side_moments(totals, "fake", kind))

    return measure


def add_manifolds(tally: Tally, real: Tensor, fake: FeatureSample, device: torch.device) -> None:
    """Sum which of the sampled pictures lie in the other side's manifold; the manifolds stay fixed."""
    precise, recalled = precision_recall(real.to(device), fake.tensor().to(device))
    for name, inside in (("precision", precise), ("recall", recalled)):
        blocks = torch.arange(len(inside)) % tally.blocks
        tally.add(f"manifold {name}", blocks, inside)
        tally.add(f"manifold {name} count", blocks, torch.ones(len(inside)))


def manifold_measures() -> dict[str, Measure]:
    """Precision and recall, after `add_manifolds`."""

    def share(name: str) -> Measure:
        return lambda totals: (
            totals.number(f"manifold {name}") / max(totals.number(f"manifold {name} count"), 1)
        )

    return {name: share(name) for name in ("precision", "recall")}
