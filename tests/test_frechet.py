from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from training.evaluation.frechet import FrechetReference, frechet_distance, moments_of
from training.evaluation.inception_score import inception_score, score_terms
from training.evaluation.tally import Tally, Totals


class Given(nn.Module):
    """Gives torchmetrics features that were computed already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def features(seed: int, count: int, size: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator)
    return torch.randn(count, size, generator=generator) @ mix + shift


def torchmetrics_fid(real: Tensor, fake: Tensor) -> float:
    metric = FrechetInceptionDistance(feature=Given(real.shape[1]), input_img_size=(1, 1, real.shape[1]))
    metric.set_dtype(torch.float64)
    metric.update(real[:, None, None], real=True)
    metric.update(fake[:, None, None], real=False)
    return float(metric.compute())


@pytest.mark.parametrize("size", [4, 32])
def test_the_distance_is_that_of_torchmetrics(size: int) -> None:
    real, fake = features(1, 300, size), features(2, 200, size, shift=0.5)
    got = frechet_distance(moments_of(real), moments_of(fake))
    assert got == pytest.approx(torchmetrics_fid(real.double(), fake.double()), rel=1e-6)


def test_the_distance_of_scaled_and_shifted_features_is_known() -> None:
    real = features(3, 500, 8)
    moved = 2 * real + 3
    # With commuting covariances C and 4 C the traces give tr(C + 4C - 2 * 2C) = tr(C).
    own = moments_of(real)
    shift = (own.mean + 3).square().sum()
    assert frechet_distance(own, moments_of(moved)) == pytest.approx(float(shift + own.covariance.trace()))


def test_the_distance_to_itself_is_nothing_even_with_fewer_pictures_than_features() -> None:
    few = moments_of(features(4, 20, 64))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(few, moments_of(features(5, 20, 64))) > 1


def test_the_distance_is_symmetric() -> None:
    first, second = moments_of(features(6, 50, 16)), moments_of(features(7, 60, 16))
    assert FrechetReference(first).distance(second) == pytest.approx(FrechetReference(second).distance(first))


@pytest.mark.filterwarnings("ignore:std\\(\\):UserWarning")
@pytest.mark.filterwarnings("ignore:Metric `InceptionScore` will save all extracted features")
def test_the_inception_score_is_that_of_torchmetrics_over_one_split() -> None:
    logits = 3 * features(8, 100, 10)
    metric = InceptionScore(feature=Given(10), splits=1)  # of one split it also takes the deviation
    metric.update(logits[:, :, None, None])
    tally = Tally(3)
    for part in torch.split(logits, 33):
        blocks = torch.arange(len(part)) % 3
        negentropy, probabilities = score_terms(part)
        tally.add("negentropy", blocks, negentropy)
        tally.add("probabilities", blocks, probabilities)
    totals = Totals(tally.sums(), torch.ones(3))
    got = inception_score(100, totals.number("negentropy"), totals["probabilities"])
    assert got == pytest.approx(float(metric.compute()[0]), rel=1e-5)


def test_the_inception_score_of_sure_and_different_answers_is_the_number_of_classes() -> None:
    negentropy, probabilities = score_terms(1000 * torch.eye(7))
    assert inception_score(7, float(negentropy.sum()), probabilities.sum(0)) == pytest.approx(7)
