from __future__ import annotations

import pytest
import torch

from models.errors import ConfigError
from training.evaluation import manifold
from training.evaluation.manifold import precision_recall


def normal(seed: int, count: int, size: int = 6) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def by_definition(points: torch.Tensor, centres: torch.Tensor, k: int) -> list[bool]:
    """Whether each point is no farther from some centre than that centre's k-th nearest other one."""
    radii = [
        sorted(float((a - b).double().norm()) for j, b in enumerate(centres) if j != i)[k - 1]
        for i, a in enumerate(centres)
    ]
    return [
        any(float((p - c).double().norm()) <= r for c, r in zip(centres, radii, strict=True)) for p in points
    ]


def test_it_does_what_the_definition_says_in_any_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(0, 30), normal(1, 25) * 1.5
    for block in (1024, 7):
        monkeypatch.setattr(manifold, "BLOCK", block)
        precise, recalled = precision_recall(real, fake)
        assert precise.tolist() == by_definition(fake, real, 3)
        assert recalled.tolist() == by_definition(real, fake, 3)


def test_equal_sets_are_inside_each_other_also_when_pictures_repeat() -> None:
    real = torch.cat([normal(2, 20), normal(2, 20), normal(2, 20), normal(2, 20), normal(2, 20)]) + 50
    precise, recalled = precision_recall(real, real.flip(0))
    assert precise.all()
    assert recalled.all()


def test_a_narrow_set_is_precise_and_recalls_little() -> None:
    precise, recalled = precision_recall(normal(3, 300), normal(4, 300) * 0.2)
    assert precise.double().mean() > 0.95
    assert recalled.double().mean() < 0.3


def test_a_distant_set_is_neither() -> None:
    precise, recalled = precision_recall(normal(5, 50), normal(6, 50) + 100)
    assert not precise.any()
    assert not recalled.any()


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 4 pictures, got 3 and 9"):
        precision_recall(normal(7, 3), normal(8, 9))
