"""The seed contract, derived a second time: Philox4x64-10 in Python's own integers."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InputError
from models.noise import MAX_SEED, check_seed, step_uniforms

WORD = 2**64


def philox_block(counter: int, key: int) -> list[int]:
    """Four 64-bit words (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011)."""
    c = [counter >> 64 * i & (WORD - 1) for i in range(4)]
    k = [key & (WORD - 1), key >> 64]
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [second // WORD ^ c[1] ^ k[0], second % WORD, first // WORD ^ c[3] ^ k[1], first % WORD]
        k = [(k[0] + 0x9E3779B97F4A7C15) % WORD, (k[1] + 0xBB67AE8584CAA73B) % WORD]
    return c


def documented_uniforms(seed: int, step: int, group: int) -> tuple[float, float]:
    word = philox_block((group // 4 + 1) + step * 2**192, seed)[group % 4]
    lower, upper = word % 2**32, word // 2**32
    return ((lower >> 9) + 0.5) / 2**23, ((upper >> 9) + 0.5) / 2**23


def test_our_philox_gives_the_known_answers() -> None:
    """From the test vectors (kat_vectors) that the authors publish with Random123."""
    assert philox_block(0, 0) == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]
    assert philox_block(2**256 - 1, 2**128 - 1) == [
        0x87B092C3013FE90B,
        0x438C3C67BE8D0224,
        0x9CC7D7C69CD777B6,
        0xA09CAEBF594F0BA0,
    ]


@pytest.mark.parametrize(
    ("seed", "step"), [(0, 0), (0, 1), (1, 0), (7, 63), (MAX_SEED, 255), (2**40 + 3, 11)]
)
def test_the_documented_formula_gives_every_uniform_exactly(seed: int, step: int) -> None:
    categories, confidences = step_uniforms(seed, step, (9, 2))
    assert categories.dtype == confidences.dtype == np.float32
    wanted = [documented_uniforms(seed, step, group) for group in range(18)]
    assert list(zip(categories.ravel().tolist(), confidences.ravel().tolist(), strict=True)) == wanted


@given(st.integers(0, MAX_SEED), st.integers(0, 1000))
def test_uniforms_lie_strictly_inside_and_their_logarithms_are_finite(seed: int, step: int) -> None:
    for uniforms in step_uniforms(seed, step, (64, 2)):
        assert ((uniforms > 0) & (uniforms < 1)).all()
        assert np.isfinite(-np.log(-np.log(uniforms))).all()


def test_even_the_outermost_uniforms_are_inside() -> None:
    for value in (0, 2**23 - 1):
        uniform = np.float32((value + 0.5) / 2**23)
        assert 0 < uniform < 1
        assert float(uniform) == (value + 0.5) / 2**23
        assert math.isfinite(-math.log(-math.log(uniform)))


def test_a_longer_picture_begins_with_the_noise_of_a_shorter_one() -> None:
    short, long = step_uniforms(5, 3, (16, 2)), step_uniforms(5, 3, (64, 2))
    for part, whole in zip(short, long, strict=True):
        assert np.array_equal(part.ravel(), whole.ravel()[:32])


def test_seeds_steps_and_the_two_uses_are_independent() -> None:
    """No shared values beyond chance and no correlation, also between neighbours."""
    shape = (2048, 2)
    streams = [part for seed, step in [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2**32, 0)]
               for part in step_uniforms(seed, step, shape)]  # fmt: skip
    for uniforms in streams:
        assert abs(uniforms.mean() - 0.5) < 0.02
        assert abs(uniforms.std() - 12**-0.5) < 0.01
    correlations = np.abs(np.corrcoef([uniforms.ravel() for uniforms in streams]))
    assert (correlations - np.eye(len(streams))).max() < 0.08
    for one, other in pairwise(streams):
        assert np.intersect1d(one, other).size < 20


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 2**64, -(2**63)])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(InputError, match=rf"seed is {seed}; allowed are 0 to 9223372036854775807"):
        step_uniforms(seed, 0, (4, 2))
    with pytest.raises(InputError):
        check_seed(seed)


def test_a_sound_seed_is_handed_back() -> None:
    assert [check_seed(seed) for seed in (0, MAX_SEED)] == [0, MAX_SEED]
