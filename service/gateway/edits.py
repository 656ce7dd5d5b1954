"""`POST /edit`: what its body may say, and the bit operations as that body means them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from models import bit_edits
from models.bits import Indices
from models.config import MAX_BITS
from service.errors import InvalidRequest
from service.gateway.grids import MAX_SIDE, Source, Strict, check_grid
from service.gateway.offer import Offer
from service.gateway.schemas import Body, GenerateFormat

MAX_OPERATIONS = 64

Bit = Annotated[int, Field(ge=0, lt=MAX_BITS)]
Bits = Annotated[list[Bit], Field(min_length=1, max_length=MAX_BITS)]
Edges = Annotated[list[Annotated[int, Field(ge=0, le=MAX_SIDE)]], Field(min_length=4, max_length=4)]

_IN_PLACE = {"flip": bit_edits.flip, "set": bit_edits.set_bits, "clear": bit_edits.clear}


class _Operation(Strict):
    box: Edges | None = Field(
        None, description="top, left, bottom and right in tokens, ends excluded; everywhere if absent"
    )

    def check(self, bits: Sequence[int], offer: Offer, place: str) -> None:
        """Raise InvalidRequest unless tokens have all `bits` and the box holds some tokens of the grid."""
        if max(bits) >= offer.bits:
            raise InvalidRequest(f"{place}.bits has {max(bits)}; allowed are 0 to {offer.bits - 1}")
        top, left, bottom, right = self.box or (0, 0, *offer.grid)
        height, width = offer.grid
        if not (top < bottom <= height and left < right <= width):
            raise InvalidRequest(
                f"{place}.box is {[top, left, bottom, right]}; [top, left, bottom, right] needs "
                f"top < bottom <= {height} and left < right <= {width}"
            )


class BitOperation(_Operation):
    """Flip, set or clear bits."""

    op: Literal["flip", "set", "clear"] = Field(description="what happens to the bits")
    bits: Bits = Field(description="numbers of bits, 0 the least significant")


class MixOperation(_Operation):
    """Take bits from the tokens of another picture."""

    op: Literal["mix"] = Field(description="what happens to the bits")
    other: Source = Field(alias="with", description="the tokens, or the picture, that the bits come from")
    bits: Bits | None = Field(None, description="numbers of bits, 0 the least significant; all if absent")


Operation = Annotated[BitOperation | MixOperation, Field(discriminator="op")]


class EditBody(Source, Body):
    """`POST /edit`: operations on the bits of one token grid, in their order."""

    operations: list[Operation] = Field(
        min_length=1, max_length=MAX_OPERATIONS, description="done one after another"
    )
    format: GenerateFormat = Field("png", description="of the picture; with tokens there is none")

    @property
    def sources(self) -> list[Source]:
        """What has to become tokens: the grid to edit, then those to mix in."""
        return [self, *(one.other for one in self.operations if isinstance(one, MixOperation))]

    def check(self, offer: Offer) -> None:
        """Raise InvalidRequest for bits or boxes that the model's tokens do not have."""
        for number, one in enumerate(self.operations):
            one.check(one.bits or [0], offer, f"operations[{number}]")

    def edited(self, grids: Sequence[Indices], offer: Offer) -> Indices:
        """Token indices i64 (h, w) after all operations, from the grids of `sources`."""
        grid, *others = grids
        waiting = iter(others)
        for one in self.operations:
            if isinstance(one, MixOperation):
                grid = bit_edits.mix(grid, next(waiting), one.bits or range(offer.bits), one.box)
            else:
                grid = _IN_PLACE[one.op](grid, one.bits, one.box)
        return check_grid(grid, offer)


EDIT: TypeAdapter[EditBody] = TypeAdapter(EditBody)
