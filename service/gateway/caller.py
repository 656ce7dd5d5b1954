"""Who makes a request."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request


@dataclass(frozen=True)
class Caller:
    """`tenant` owns the jobs that this caller submits; nobody else sees them."""

    tenant: str


PUBLIC = Caller("public")


async def caller_of(request: Request) -> Caller:
    """The caller of a request."""
    caller = request.scope["state"].get("caller", PUBLIC)
    assert isinstance(caller, Caller)
    return caller


CallerDep = Annotated[Caller, Depends(caller_of)]
