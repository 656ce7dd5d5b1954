"""Changes of single bits in a grid of tokens (NumPy), as the MaskBit paper makes to show what bits mean.

Each takes token indices i64 (h, w) and returns new ones. `bits` are numbers of bits, 0 the least significant;
naming one twice changes nothing. `box` is (top, left, bottom, right) in tokens, its ends excluded, inside the
grid; None is everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from models.bits import Indices

Box = Sequence[int]


def flip(grid: Indices, bits: Iterable[int], box: Box | None = None) -> Indices:
    """0 becomes 1 and 1 becomes 0."""
    edited, inside = _copy(grid, box)
    inside ^= _word(bits)
    return edited


def set_bits(grid: Indices, bits: Iterable[int], box: Box | None = None) -> Indices:
    """The bits become 1."""
    edited, inside = _copy(grid, box)
    inside |= _word(bits)
    return edited


def clear(grid: Indices, bits: Iterable[int], box: Box | None = None) -> Indices:
    """The bits become 0."""
    edited, inside = _copy(grid, box)
    inside &= ~_word(bits)
    return edited


def mix(grid: Indices, other: Indices, bits: Iterable[int], box: Box | None = None) -> Indices:
    """The bits become those of `other` i64 (h, w)."""
    edited, inside = _copy(grid, box)
    word = _word(bits)
    inside &= ~word
    inside |= other[_region(box)] & word
    return edited


def _copy(grid: Indices, box: Box | None) -> tuple[Indices, Indices]:
    """A copy of `grid`, and the view of it that lies inside `box`."""
    edited = grid.copy()
    return edited, edited[_region(box)]


def _region(box: Box | None) -> tuple[slice, slice]:
    top, left, bottom, right = box or (None, None, None, None)
    return slice(top, bottom), slice(left, right)


def _word(bits: Iterable[int]) -> int:
    word = 0
    for bit in bits:
        word |= 1 << bit
    return word
