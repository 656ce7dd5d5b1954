"""A token grid as requests give it: rows of bit strings, rows of indices, packed bytes, or a picture."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from models import bits
from models.bits import Indices
from service.errors import InvalidRequest
from service.gateway.offer import Offer
from service.gateway.refusals import shorten
from service.gateway.uploads import Fit

MAX_SIDE = 1024

T = TypeVar("T")

Token = Annotated[str, Field(max_length=64)]
Index = Annotated[int, Field(ge=0, le=(1 << 31) - 1)]
# Only the first error is ever told; one for each wrong token would cost a second of everybody's time.
_SIDE: Any = Field(max_length=MAX_SIDE, fail_fast=True)
Rows = Annotated[list[Annotated[list[T], _SIDE]], _SIDE]
Sides = Annotated[list[Annotated[int, Field(ge=1, le=MAX_SIDE)]], Field(min_length=2, max_length=2)]

FIT_MEANING = "how pictures become square: crop keeps the centre, pad adds a margin, stretch distorts"
FORMS = ("tokens", "indices", "packed")


class Strict(BaseModel):
    """Base of what requests say in JSON: nothing is converted, nothing unknown is let through."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class GridForms(Strict):
    """One token grid in at least one form, and beside it what else an answer of `POST /tokenize` says."""

    tokens: Rows[Token] | None = Field(None, description="the tokens as rows of bit strings, bit 0 first")
    indices: Rows[Index] | None = Field(None, description="the tokens as rows of indices")
    packed: str | None = Field(
        None, description="the tokens as base64 of all bits, row by row, bit 0 of a token first"
    )
    grid: Sides | None = Field(None, description="rows and columns; must be the model's if given")
    bits_per_token: int | None = Field(None, description="must be the model's if given")
    bundle: str | None = Field(
        None,
        max_length=300,
        description="which revision made the tokens; not checked, since revisions may share a tokenizer",
    )
    bit_order: Literal["lsb-first"] | None = Field(None, description="the only order there is")

    @property
    def given(self) -> list[str]:
        """The forms in which the tokens are given."""
        return [name for name in FORMS if getattr(self, name) is not None]

    def token_grid(self, offer: Offer) -> Indices:
        """Token indices i64 (h, w); several forms must agree. Raises InvalidRequest or InputError."""
        if not self.given:
            raise InvalidRequest(f"one of {', '.join(FORMS)} is needed, got none of them")
        self._check_fit(offer)
        grids = [self._parsed(name, offer) for name in self.given]
        for name, grid in zip(self.given[1:], grids[1:], strict=True):
            if (grid != grids[0]).any():
                raise InvalidRequest(f"{self.given[0]} and {name} are not the same tokens; give one of them")
        return check_grid(grids[0], offer)

    def _check_fit(self, offer: Offer) -> None:
        if self.grid not in (None, list(offer.grid)):
            raise InvalidRequest(f"grid is {self.grid}; the model {offer.model} has {list(offer.grid)}")
        if self.bits_per_token not in (None, offer.bits):
            raise InvalidRequest(
                f"bits_per_token is {self.bits_per_token}; the model {offer.model} has {offer.bits}"
            )

    def _parsed(self, name: str, offer: Offer) -> Indices:
        if name == "packed":
            return bits.unpack(from_base64("packed", self.packed or ""), offer.grid, offer.bits)
        rows = getattr(self, name)
        check_shape(name, rows, offer.grid)
        return bits.from_strings(rows, offer.bits) if name == "tokens" else np.array(rows, dtype=np.int64)


class Source(GridForms):
    """One token grid, given as such or as the picture whose tokens it is."""

    image: str | None = Field(
        None, min_length=1, description="instead of tokens: a PNG, JPEG, WebP or GIF in base64"
    )
    fit: Fit = Field("crop", description=FIT_MEANING)

    @property
    def has_source(self) -> bool:
        """Whether there are tokens or a picture."""
        return bool(self.given) or self.image is not None

    def upload(self) -> bytes | None:
        """The bytes of the picture, None where tokens are given. Raises InvalidRequest."""
        if self.image is not None and self.given:
            raise InvalidRequest(f"image and {self.given[0]} are both given; give one of them")
        if not self.has_source:
            raise InvalidRequest(f"one of {', '.join(FORMS)} and image is needed, got none of them")
        return None if self.image is None else from_base64("image", self.image)


def check_shape(name: str, rows: list[list[Any]], shape: tuple[int, int]) -> None:
    """Raise InvalidRequest unless `rows` of the field `name` are as many and as long as `shape` says."""
    height, width = shape
    if len(rows) != height or any(len(row) != width for row in rows):
        widths = sorted({len(row) for row in rows})
        got = f"{len(rows)} rows of {' and '.join(map(str, widths[:3])) or 'no'} tokens"
        raise InvalidRequest(f"{name} has {got}; {height} rows of {width} are needed")


def check_grid(indices: Indices, offer: Offer) -> Indices:
    """Return `indices`; InvalidRequest unless each is a token of the bundle."""
    if int(indices.min()) < 0 or int(indices.max()) >= offer.num_codes:
        raise InvalidRequest(
            f"token indices run from {indices.min()} to {indices.max()}; "
            f"allowed are 0 to {offer.num_codes - 1}"
        )
    return indices


def from_base64(name: str, text: str) -> bytes:
    """The bytes of the field `name`. Raises InvalidRequest."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise InvalidRequest(f"{name} is {shorten(text)}, which is no base64 ({exc})") from None
