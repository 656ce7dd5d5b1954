import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.halton import (
    RANK_NOISE_TEMPERATURE,
    Order,
    group_order,
    halton_cells,
    rank_uniforms,
    token_order,
)
from models.sampler import remask

SIDES = (1, 2, 3, 5, 8, 12, 16, 24, 32)


def test_the_sequence_begins_as_published() -> None:
    """Bases 2 and 3: (0, 0), (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9), (5/8, 7/9)."""
    points = [(0, 0), (1 / 2, 1 / 3), (1 / 4, 2 / 3), (3 / 4, 1 / 9), (1 / 8, 4 / 9), (5 / 8, 7 / 9)]
    for side in (5, 8, 16):
        wanted = [int(row * side) * side + int(column * side) for row, column in points]
        assert halton_cells(side)[: len(points)].tolist() == wanted


@given(st.sampled_from(SIDES), st.integers(1, 3), st.floats(0, 1, exclude_max=True))
def test_every_group_comes_once(side: int, splits: int, start: float) -> None:
    assert sorted(token_order(side, start)) == list(range(side**2))
    assert sorted(group_order(side, splits, start)) == list(range(side**2 * splits))


def unevenness(order: Order, side: int) -> float:
    """How far the share of a corner box that a prefix fills is from its area: worst box, mean of prefixes."""
    ranks = np.empty((side, side), dtype=np.int64)
    ranks.flat[order] = np.arange(side**2)
    area = np.outer(np.arange(1, side + 1), np.arange(1, side + 1)) / side**2
    worst = []
    for count in range(1, side**2):
        filled = (ranks < count).cumsum(0).cumsum(1) / count
        worst.append(np.abs(filled - area).max())
    return float(np.mean(worst))


@pytest.mark.parametrize("side", [8, 16])
def test_wherever_it_starts_tokens_are_spread_more_evenly_than_by_chance(side: int) -> None:
    rng = np.random.default_rng(0)
    chance = np.mean([unevenness(rng.permutation(side**2), side) for _ in range(10)])
    raster = unevenness(np.arange(side**2), side)
    halton = [unevenness(token_order(side, start), side) for start in (k / 12 for k in range(12))]
    assert np.mean(halton) < 0.65 * chance
    assert max(halton) < 0.8 * chance
    assert max(halton) < 0.3 * raster


def test_starts_give_different_orders() -> None:
    orders = {tuple(token_order(16, start)) for start in np.linspace(0, 1, 50, endpoint=False)}
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


def test_the_cells_that_all_orders_share_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        halton_cells(8)[0] = 1
