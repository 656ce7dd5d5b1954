"""Which tokens of a picture are to be drawn anew, from rows of 0 and 1 or from a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Discriminator, Field, Tag

from models.bits import Mask
from service.errors import InvalidRequest
from service.gateway.grids import Rows, check_shape
from service.gateway.offer import Offer

BRIGHT = 128  # luminance from which a pixel counts as marked
_LUMA = (299, 587, 114)  # thousandths, by ITU-R BT.601


def _mask_form(value: object) -> str:
    return "rows" if isinstance(value, list) else "picture"


MaskField = Annotated[
    Annotated[Rows[Annotated[int, Field(ge=0, le=1)]], Tag("rows")]
    | Annotated[str, Field(min_length=1), Tag("picture")],
    Discriminator(_mask_form),
]


def mask_of_rows(rows: Sequence[Sequence[int]], offer: Offer) -> Mask:
    """The mask (h, w) that `rows` of 0 and 1 say. Raises InvalidRequest for another shape."""
    check_shape("mask", [list(row) for row in rows], offer.grid)
    return np.array(rows, dtype=bool)


def mask_of_pixels(pixels: NDArray[np.uint8], offer: Offer) -> Mask:
    """The mask (h, w) of a picture u8 (size, size, 3): tokens whose patch has a bright pixel."""
    height, width = offer.grid
    bright = pixels.astype(np.int64) @ np.array(_LUMA) >= BRIGHT * 1000
    patches = bright.reshape(height, bright.shape[0] // height, width, bright.shape[1] // width)
    mask: Mask = patches.any(axis=(1, 3))
    return mask


def check_mask(mask: Mask) -> Mask:
    """Return `mask`; InvalidRequest when it leaves nothing to draw."""
    if not mask.any():
        raise InvalidRequest(
            "mask marks no token; mark what is to be drawn anew with 1, or with white pixels"
        )
    return mask
