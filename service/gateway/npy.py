"""Token grids as NumPy files: int32 (h, w) out, any integer type in."""

import io
import re

import numpy as np

from models.bits import Indices
from service.errors import InvalidRequest

MEDIA_TYPE = "application/x-npy"

# The one form in which NumPy and its imitators write the header of an integer matrix. NumPy evaluates the
# header and allocates what it declares; after this pattern there is nothing left to fear from either.
_HEADER = re.compile(
    rb"\{'descr': '[<>|=][iu][1248]', 'fortran_order': (?:True|False), "
    rb"'shape': \((\d{1,5}), ?(\d{1,5}),?\),? ?\}\s*"
)
_MAGIC = b"\x93NUMPY"


def write_npy(grid: Indices) -> bytes:
    """The file of one token grid."""
    file = io.BytesIO()
    np.save(file, grid.astype("<i4"), allow_pickle=False)
    return file.getvalue()


def read_npy(data: bytes, shape: tuple[int, int]) -> Indices:
    """Token indices i64 of `shape`. Raises InvalidRequest."""
    wanted = f"a NumPy file of {shape[0]} x {shape[1]} integers is needed"
    if data[:6] != _MAGIC or len(data) < 12 or data[6] not in (1, 2, 3):
        raise InvalidRequest(f"the body of {len(data)} bytes is no NumPy file; {wanted}")
    start = 10 if data[6] == 1 else 12
    length = int.from_bytes(data[8:start], "little")
    header = _HEADER.fullmatch(data[start : start + length])
    if header is None or (int(header[1]), int(header[2])) != shape:
        raise InvalidRequest(f"the NumPy header is {data[start : start + min(length, 80)]!r}; {wanted}")
    try:
        grid: Indices = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as exc:
        raise InvalidRequest(f"the NumPy file cannot be read ({exc}); {wanted}") from None
    if grid.max() > np.iinfo(np.int32).max:
        raise InvalidRequest(f"token indices run up to {grid.max()}; 32 bits are more than any token has")
    return grid.astype(np.int64)
