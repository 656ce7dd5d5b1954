"""Token representations: index, bits, groups and packed bytes (NumPy).

Bit k of a token is channel k of the tokenizer; bit 0 is the least significant bit of the index everywhere.
"""

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]  # one truth value for each token


def check_indices(indices: Indices, bits: int) -> None:
    """Raise InputError unless every index lies in [0, 2^bits)."""
    if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= 1 << bits):
        raise InputError(
            f"token indices run from {indices.min()} to {indices.max()}; allowed are 0 to {(1 << bits) - 1}"
        )


def to_bits(indices: Indices, bits: int) -> NDArray[np.uint8]:
    """0/1 array (..., bits) of `indices` (...), bit 0 first."""
    check_indices(indices, bits)
    return ((indices[..., None] >> np.arange(bits)) & 1).astype(np.uint8)


def from_bits(values: NDArray[np.uint8]) -> Indices:
    """Indices (...) of a 0/1 array (..., bits), bit 0 first."""
    indices: Indices = (values.astype(np.int64) << np.arange(values.shape[-1])).sum(-1)
    return indices


def split_groups(indices: Indices, bits: int, splits: int) -> Indices:
    """Groups (..., splits) of `indices` (...): group g holds bits g*b to g*b + b-1 with b = bits / splits."""
    check_indices(indices, bits)
    width = bits // splits
    return (indices[..., None] >> (np.arange(splits) * width)) & ((1 << width) - 1)


def join_groups(groups: Indices, bits: int) -> Indices:
    """Indices (...) of `groups` (..., splits)."""
    splits = groups.shape[-1]
    check_indices(groups, bits // splits)
    indices: Indices = (groups << (np.arange(splits) * (bits // splits))).sum(-1)
    return indices


def to_strings(indices: Indices, bits: int) -> list[list[str]]:
    """Rows of strings of 0 and 1, bit 0 first, of a grid of `indices` (h, w)."""
    code_points = to_bits(indices, bits).astype(np.uint32) + ord("0")
    rows: list[list[str]] = code_points.view(f"U{bits}")[..., 0].tolist()
    return rows


def from_strings(rows: list[list[str]], bits: int) -> Indices:
    """Indices (h, w) of rows of bit strings, bit 0 first."""
    if len({len(row) for row in rows}) != 1 or not rows[0]:
        raise InputError(
            f"rows have {[len(row) for row in rows][:40]} tokens; all need the same number, at least 1"
        )
    for row in rows:
        for token in row:
            if len(token) != bits or set(token) - {"0", "1"}:
                raise InputError(f"token {token[:40]!r} is not a string of {bits} characters 0 and 1")
    return from_bits(np.array([[list(token) for token in row] for row in rows], dtype=np.uint8))


def pack_mask(mask: Mask) -> bytes:
    """One bit for each token of `mask`, in row order, filling each byte from its lowest bit."""
    return pack(mask.astype(np.int64), 1)


def unpack_mask(data: bytes, shape: tuple[int, ...]) -> Mask:
    """The mask of `shape` from the bytes of `pack_mask`."""
    return unpack(data, shape, 1).astype(bool)


def pack(indices: Indices, bits: int) -> bytes:
    """All bits of `indices` in row order, bit 0 of a token first, filling each byte from its lowest bit."""
    return np.packbits(to_bits(indices, bits).ravel(), bitorder="little").tobytes()


def unpack(data: bytes, shape: tuple[int, ...], bits: int) -> Indices:
    """Indices of `shape` from the bytes of `pack`."""
    count = int(np.prod(shape)) * bits
    expected = -(-count // 8)
    if len(data) != expected:
        raise InputError(
            f"packed tokens hold {len(data)} bytes; {shape} tokens of {bits} bits take {expected}"
        )
    flat = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=count, bitorder="little")
    return from_bits(flat.reshape(*shape, bits))
