from __future__ import annotations

import numpy as np
import pytest
import torch

from training.evaluation import tally as tally_module
from training.evaluation.feature_sample import FeatureSample, priorities
from training.evaluation.frechet import moments_of, moments_of_sums
from training.evaluation.tally import Tally, Totals


def filled(features: torch.Tensor, blocks: torch.Tensor, batch: int) -> Tally:
    tally = Tally(4)
    for part, owners in zip(torch.split(features, batch), torch.split(blocks, batch), strict=True):
        tally.add_moments("x", owners, part)
        tally.add("count", owners, torch.ones(len(part)))
    return tally


def test_streamed_moments_are_those_of_all_features_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally_module, "PENDING", 32)
    features = torch.randn(150, 5, generator=torch.Generator().manual_seed(0)) * 3 + 10
    totals = Totals(filled(features, torch.arange(150) % 4, 17).sums(), torch.ones(4))
    got = moments_of_sums(totals.number("count"), totals["x"], totals.square("x outer"))
    expected = np.cov(features.double().numpy().T)
    assert got.count == 150
    assert np.allclose(got.mean.numpy(), features.double().numpy().mean(0), rtol=1e-12)
    assert np.allclose(got.covariance.numpy(), expected, rtol=1e-10, atol=1e-12)


def test_weights_take_blocks_several_times_or_not_at_all() -> None:
    features = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    blocks = torch.arange(40) % 4
    totals = Totals(filled(features, blocks, 8).sums(), torch.tensor([2, 0, 1, 0]))
    repeated = torch.cat([features[blocks == 0], features[blocks == 0], features[blocks == 2]])
    got = moments_of_sums(totals.number("count"), totals["x"], totals.square("x outer"))
    torch.testing.assert_close(got.covariance, moments_of(repeated).covariance)


def test_tallies_of_two_processes_add_up() -> None:
    features = torch.randn(64, 3, generator=torch.Generator().manual_seed(2))
    blocks = torch.arange(64) % 4
    whole, first = filled(features, blocks, 8).sums(), filled(features[:30], blocks[:30], 7)
    first.merge(filled(features[30:], blocks[30:], 9).sums())
    for name, values in first.sums().items():
        torch.testing.assert_close(values, whole[name], rtol=1e-12, atol=1e-12)


def test_codes_are_counted_by_block() -> None:
    tally = Tally(2)
    tally.add_counts("codes", torch.tensor([0, 1, 1]), torch.tensor([[0, 3], [3, 3], [1, 2]]), 4)
    assert tally.sums()["codes"].tolist() == [[1, 0, 0, 1], [0, 1, 1, 2]]


def test_a_sample_depends_neither_on_order_nor_on_who_saw_the_pictures() -> None:
    numbers = np.arange(500)
    features = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
    shuffled, merged = FeatureSample(50), FeatureSample(50)
    for part in np.array_split(np.random.default_rng(1).permutation(500), 13):
        shuffled.add(numbers[part], features[part])
    halves = [FeatureSample(50), FeatureSample(50)]
    for half, share in zip(halves, (numbers[::2], numbers[1::2]), strict=True):
        half.add(share, features[share])
        content = half.content()
        assert content is not None
        merged.add(*content)
    first, second = shuffled.content(), merged.content()
    assert first is not None
    assert second is not None
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], features[first[0]])
    assert np.array_equal(second[1], first[1])


def test_priorities_spread_evenly() -> None:
    shares = priorities(np.arange(100_000)).astype(np.float64) / 2**64
    histogram, _ = np.histogram(shares, bins=20, range=(0, 1))
    assert np.abs(histogram - 5000).max() < 5 * 5000**0.5
