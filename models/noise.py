"""The seed contract: the random numbers of (seed, step) are defined here and nowhere else (NumPy).

Words come from Philox4x64-10 with the 128-bit key `seed`, as
`numpy.random.Philox(key=seed, counter=[0, 0, 0, step]).random_raw()` gives them: words 4k to 4k+3 are the
block of the 256-bit counter (k + 1) + step * 2^192. Word j belongs to group j of the picture in (token,
group) order. Its lower half gives the uniform that draws a category, its upper half the one for the
confidence noise, each from 23 bits v of a 32-bit half h: v = h >> 9, u = (v + 1/2) / 2^23. Every u is exact
in float32 and lies strictly between 0 and 1, so that log(u) and log(-log u) are finite.
"""

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError

MAX_SEED = 2**63 - 1

Uniforms = NDArray[np.float32]


def check_seed(seed: int) -> int:
    """Return `seed`; an InputError unless it is in [0, 2^63)."""
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed is {seed}; allowed are 0 to {MAX_SEED}")
    return seed


def _uniforms(halves: NDArray[np.uint64]) -> Uniforms:
    return ((halves >> np.uint64(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)


def step_uniforms(seed: int, step: int, shape: tuple[int, ...]) -> tuple[Uniforms, Uniforms]:
    """Uniforms for categories and for confidence, f32 of `shape` each, in (0, 1), of 0-based `step`."""
    philox = np.random.Philox(key=check_seed(seed), counter=[0, 0, 0, step])
    words: NDArray[np.uint64] = philox.random_raw(int(np.prod(shape)))
    words = words.reshape(shape)
    return _uniforms(words & np.uint64(0xFFFFFFFF)), _uniforms(words >> np.uint64(32))
