import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.halton import (
    RANK_NOISE_TEMPERATURE,
    Order,
    group_order,
    halton_groups,
    rank_uniforms,
)
from models.sampler import remask

SIDES = (1, 2, 3, 5, 8, 12, 16, 24, 32)


def test_the_sequence_begins_as_published() -> None:
    """Bases 2, 3 and 5: (0, 0, 0), (1/2, 1/3, 1/5), (1/4, 2/3, 2/5), (3/4, 1/9, 3/5), …"""
    rows = (0, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8)
    columns = (0, 1 / 3, 2 / 3, 1 / 9, 4 / 9, 7 / 9)
    places = (0, 1 / 5, 2 / 5, 3 / 5, 4 / 5, 1 / 25)
    for side, splits in ((5, 1), (8, 2), (16, 3)):
        wanted = [
            (int(row * side) * side + int(column * side)) * splits + int(place * splits)
            for row, column, place in zip(rows, columns, places, strict=True)
        ]
        assert halton_groups(0, len(wanted), side, splits).tolist() == wanted


@settings(deadline=None)
@given(st.sampled_from(SIDES), st.integers(1, 3), st.floats(0, 1, exclude_max=True))
def test_every_group_comes_once(side: int, splits: int, start: float) -> None:
    assert sorted(group_order(side, splits, start)) == list(range(side**2 * splits))


def unevenness(order: Order, side: int, splits: int) -> float:
    """How far the share of a prefix in a corner box is from the box's volume: worst box, mean of prefixes."""
    shape = (side, side, splits)
    ranks = np.empty(shape, dtype=np.int64)
    ranks.flat[order] = np.arange(len(order))
    volume = np.ones(shape).cumsum(0).cumsum(1).cumsum(2) / len(order)
    counts = range(1, len(order), splits)
    filled = ((ranks < count).cumsum(0).cumsum(1).cumsum(2) / count for count in counts)
    return float(np.mean([np.abs(share - volume).max() for share in filled]))


@pytest.mark.parametrize(("side", "splits"), [(8, 2), (16, 1), (16, 2), (16, 3)])
def test_wherever_it_starts_groups_are_spread_more_evenly_than_by_chance(side: int, splits: int) -> None:
    rng, count = np.random.default_rng(0), side**2 * splits
    chance = np.mean([unevenness(rng.permutation(count), side, splits) for _ in range(5)])
    raster = unevenness(np.arange(count), side, splits)
    halton = [unevenness(group_order(side, splits, k / 8), side, splits) for k in range(8)]
    assert np.mean(halton) < 0.7 * chance
    assert max(halton) < 0.85 * chance
    assert max(halton) < 0.3 * raster


def test_starts_give_different_orders() -> None:
    orders = {tuple(group_order(16, 2, start)) for start in np.linspace(0, 1, 50, endpoint=False)}
    assert len(orders) == 50


def test_ranks_are_exact_distinct_and_inside_the_unit_interval() -> None:
    for count in (*range(1, 1100), 3072, 4096, 65_536):
        uniforms = rank_uniforms(np.arange(count))
        assert uniforms.dtype == np.float32
        assert 0 < uniforms.min() <= uniforms.max() < 1
        assert (np.diff(uniforms) < 0).all()
        scaled = uniforms.astype(np.float64) * 2 ** (count - 1).bit_length()
        assert (scaled == np.arange(count, 0, -1) - 0.5).all()


def confidences(count: int, log_probability: torch.Tensor) -> torch.Tensor:
    """As a sampling step computes them in float32, by rank: the first settles first."""
    uniforms = torch.from_numpy(rank_uniforms(np.arange(count)))
    return log_probability + -torch.log(-torch.log(uniforms)) * torch.tensor(RANK_NOISE_TEMPERATURE)


def test_no_log_probability_moves_a_group_to_another_rank() -> None:
    """Neighbours are farther apart than 10^15: guided logits of 10^12 at temperature 0.01 reach 10^14."""
    for count in (*range(2, 1100), 3072, 4096, 16_384):
        plain = confidences(count, torch.zeros(count))
        assert plain.isfinite().all()
        assert float((plain[:-1].double() - plain[1:].double()).min()) > 1e15
        against = torch.linspace(-1e14, 0, count)
        assert (confidences(count, against).diff() < 0).all()


@pytest.mark.parametrize("count", [128, 512, 768])
def test_exactly_the_last_groups_are_masked_for_every_count(count: int) -> None:
    log_probability = -torch.rand(count, generator=torch.Generator().manual_seed(count)) * 1e6
    confidence = confidences(count, log_probability).expand(count, -1)[..., None]
    mask = remask(confidence, torch.arange(count))[..., 0]
    ranks = torch.arange(count)
    assert torch.equal(mask, ranks[None] >= count - ranks[:, None])
