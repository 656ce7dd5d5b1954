"""Pictures and token grids as files, for results."""

import io

import numpy as np
from PIL import Image

from models.runtime.base import Integers, Pixels
from service.jobs.payloads import TokenGrids

PNG_COMPRESSION = 4  # of 9; below Pillow's 6, to spare the worker's processor
LOSSY_QUALITY = 92


def picture_file(pixels: Pixels, file_format: str) -> bytes:
    """Encode u8 (H, W, 3) as `png`, `jpeg` or `webp`."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if file_format == "png":
        image.save(buffer, "PNG", compress_level=PNG_COMPRESSION)
    else:
        image.save(buffer, file_format.upper(), quality=LOSSY_QUALITY)
    return buffer.getvalue()


def npy_file(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bytes:
    """Encode an array as a NumPy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def tokens_file(indices: Integers) -> bytes:
    """Encode one grid of token indices i64 (h, w) as a TokenGrids payload."""
    return TokenGrids.of(indices[None]).pack()
