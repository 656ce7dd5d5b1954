"""What the no-op runtime must answer, worked out from the documented formulas alone, and digests of answers.

Independent of models/ and of the engine: integers only, the linear mask schedule, steps that divide 512.
"""

from __future__ import annotations

import hashlib
import io
from functools import cache

import numpy as np
from numpy.typing import NDArray

from service.jobs.payloads import Pictures, TokenGrids, Tokens

SIDE, STRIDE = 16, 4
"""Tokens and pixels of the bundled model: 16 x 16 tokens of 12 bits in 2 groups, 4 x 4 pixels each."""
GROUP_BITS, GROUPS = 6, SIDE * SIDE * 2
STEPS = (1, 2, 4, 8, 16)

Grid = NDArray[np.int64]


def drawn(seed: int, steps: int) -> Grid:
    """Token indices i64 (16, 16) of `POST /generate` with the linear mask schedule."""
    values = np.zeros(GROUPS, dtype=np.int64)
    masked = np.ones(GROUPS, dtype=bool)
    for step in range(steps):
        words = np.random.Philox(key=seed, counter=[0, 0, 0, step]).random_raw(GROUPS)
        categories = ((words & np.uint64(0xFFFFFFFF)) >> np.uint64(32 - GROUP_BITS)).astype(np.int64)
        values = np.where(masked, categories, values)
        confidence = (words >> np.uint64(41)).astype(np.int64)
        again = GROUPS * (steps - 1 - step) // steps
        candidates = np.flatnonzero(masked)
        least = candidates[np.argsort(confidence[candidates], kind="stable")[:again]]
        masked = np.zeros(GROUPS, dtype=bool)
        masked[least] = True
    pairs = values.reshape(-1, 2)
    return (pairs[:, 0] | (pairs[:, 1] << GROUP_BITS)).reshape(SIDE, SIDE)


def greys(seed: int) -> NDArray[np.uint8]:
    """One grey value u8 (16, 16) for each patch of a picture to tokenize."""
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)


def picture(seed: int) -> bytes:
    """A PNG of the grey patches."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(_pixels(greys(seed))).save(file, "PNG", compress_level=1)
    return file.getvalue()


def encoded(seed: int) -> Grid:
    """Token indices of that picture."""
    return greys(seed).astype(np.int64) * (1 << 2 * GROUP_BITS) // 256


def grid_of(seed: int) -> Grid:
    """Token indices to turn into a picture."""
    return np.random.default_rng(seed).integers(0, 1 << 2 * GROUP_BITS, (SIDE, SIDE), dtype=np.int64)


def decoded(seed: int) -> NDArray[np.uint8]:
    """The pixels u8 (64, 64, 3) of `grid_of`."""
    return _pixels((grid_of(seed) * 256 >> 2 * GROUP_BITS).astype(np.uint8))


def _pixels(patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
    large = np.kron(patches, np.ones((STRIDE, STRIDE), dtype=np.uint8))
    return np.stack([large] * 3, axis=-1)


def digest(values: NDArray[np.int64] | NDArray[np.uint8]) -> str:
    """A short name for tokens or pixels."""
    return hashlib.sha256(repr(values.shape).encode() + values.astype("<i4").tobytes()).hexdigest()[:16]


@cache
def right_digest(action: str, seed: int, steps: int) -> str:
    """The digest of the only right answer to a request."""
    if action == "tokenize":
        return digest(encoded(seed))
    if action == "detokenize":
        return digest(decoded(seed))
    return digest(drawn(seed, steps))


def digest_of_file(data: bytes) -> str:
    """The digest of a picture's pixels."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return digest(np.asarray(image.convert("RGB")))


def digest_of_result(kind: str, result: bytes) -> str:
    """The digest of a result as the queue holds it."""
    if kind == "tokenize":
        return digest(Tokens.unpack(result).array()[0])
    pictures = Pictures.unpack(result)
    if pictures.format == "tokens":
        return digest(TokenGrids.unpack(pictures.files[0]).array()[0])
    return digest_of_file(pictures.files[0])
