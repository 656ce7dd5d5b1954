"""How near a decoded picture is to the one that was encoded."""

from __future__ import annotations

import io
import math

import numpy as np

from service.gateway.decoder_pool import Pixels
from service.pictures import picture_file


def psnr_db(first: Pixels, second: Pixels) -> float | None:
    """Peak signal-to-noise ratio of pictures u8 of one shape, in dB; None when they are equal."""
    error = float(np.square(first.astype(np.float64) - second.astype(np.float64)).mean())
    return None if error == 0 else 10 * math.log10(255**2 / error)


def compared(original: Pixels, npy: bytes, file_format: str) -> tuple[bytes, float | None]:
    """The picture u8 (size, size, 3) of the NumPy file `npy` as `file_format`, and its PSNR in dB."""
    pixels: Pixels = np.load(io.BytesIO(npy), allow_pickle=False)
    return npy if file_format == "npy" else picture_file(pixels, file_format), psnr_db(original, pixels)
