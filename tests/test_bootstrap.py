from __future__ import annotations

import numpy as np
import torch

from training.evaluation.bootstrap import Estimate, estimates
from training.evaluation.measures import mean_measures
from training.evaluation.tally import Tally


def interval(values: np.ndarray, blocks: int = 20, replicates: int = 400) -> Estimate:
    tally = Tally(blocks)
    owners = torch.arange(len(values)) % blocks
    tally.add("pairs x", owners, torch.from_numpy(values))
    tally.add("count", owners, torch.ones(len(values)))
    sums = tally.sums()
    return estimates(sums, sums["count"], mean_measures(["x"], "pairs", "count"), replicates)["x"]


def test_intervals_hold_the_true_mean_about_as_often_as_they_promise() -> None:
    rng = np.random.default_rng(0)
    found = [interval(rng.exponential(size=400), replicates=200) for _ in range(150)]
    held = sum(one.low <= 1 <= one.high for one in found if one.low is not None and one.high is not None)
    assert 0.86 <= held / 150 <= 0.99  # 20 blocks make 95 % intervals a little too short


def test_the_width_is_that_of_the_standard_error() -> None:
    values = np.random.default_rng(1).normal(size=20_000)
    one = interval(values, blocks=200, replicates=1000)
    assert one.low is not None
    assert one.high is not None
    assert one.low < one.value < one.high
    assert abs((one.high - one.low) / (2 * 1.96 / 20_000**0.5) - 1) < 0.15


def test_the_same_sums_give_the_same_interval() -> None:
    values = np.random.default_rng(2).normal(size=200)
    assert interval(values) == interval(values)


def test_too_few_pictures_have_no_interval() -> None:
    assert interval(np.arange(8.0)) == Estimate(3.5)
    assert interval(np.arange(100.0), replicates=0) == Estimate(49.5)
