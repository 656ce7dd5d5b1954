"""Takes from pictures what measures need: sums into a tally, features into a bounded sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.runtime.base import Pixels
from training.evaluation.feature_network import FeatureNetwork
from training.evaluation.feature_sample import FeatureSample
from training.evaluation.inception_score import score_terms
from training.evaluation.judge import Judge
from training.evaluation.ranks import Ranks
from training.evaluation.tally import Tally
from training.losses.lpips import Lpips

REAL, FAKE = "real", "fake"  # the sides; reconstructions are fake too


@dataclass(frozen=True)
class Instruments:
    """What pictures are looked at with; each may be missing, and so are its measures then."""

    features: FeatureNetwork | None = None
    judge: Judge | None = None
    lpips: Lpips | None = None

    def names(self) -> dict[str, str | None]:
        """What reports call the networks."""
        return {
            "features": None if self.features is None else self.features.name,
            "judge": None if self.judge is None else self.judge.name,
        }


class Observer:
    """Sums over one side's pictures, under names that begin with the side."""

    def __init__(self, side: str, instruments: Instruments, tally: Tally, sample: FeatureSample) -> None:
        self.side = side
        self.tally = tally
        self.sample = sample
        self._instruments = instruments

    def add(self, indices: NDArray[np.int64], blocks: Tensor, images: Tensor, labels: Tensor) -> None:
        """Take pictures u8 (B, 3, H, W) with their numbers, blocks and classes, all i64 (B,)."""
        side, tally = self.side, self.tally
        tally.add(f"{side} count", blocks, torch.ones(len(images)))
        if self._instruments.judge is not None:
            tally.add(f"{side} right", blocks, self._instruments.judge.right(images, labels))
        if self._instruments.features is None:
            return
        found = self._instruments.features(images)
        tally.add_moments(f"{side} pooled", blocks, found.pooled)
        tally.add_moments(f"{side} spatial", blocks, found.spatial)
        negentropy, probabilities = score_terms(found.logits)
        tally.add(f"{side} negentropy", blocks, negentropy)
        tally.add(f"{side} probabilities", blocks, probabilities)
        self.sample.add(indices, found.pooled.float().cpu().numpy())


def gathered_sample(sample: FeatureSample, ranks: Ranks) -> FeatureSample:
    """The sample of the pictures of all processes."""
    whole = FeatureSample(sample.limit)
    for content in ranks.gathered(sample.content()):
        if content is not None:
            whole.add(*content)
    return whole


def to_bytes(images: Tensor) -> Tensor:
    """u8 (B, 3, H, W) of f32 images in [0, 1], rounded as a picture file would be."""
    return (images.clamp(0, 1) * 255).round().byte()


def to_pixels(images: Tensor) -> Pixels:
    """u8 (B, H, W, 3), as runtimes take pictures, of u8 (B, 3, H, W)."""
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def from_pixels(pixels: Pixels) -> Tensor:
    """u8 (B, 3, H, W) of u8 (B, H, W, 3)."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
