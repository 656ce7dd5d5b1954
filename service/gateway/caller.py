"""Who makes a request."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.jobs.allowance import UNLIMITED, Allowance


@dataclass(frozen=True)
class Caller:
    """`tenant` owns the jobs that this caller submits; nobody else sees them.

    `open_jobs`: how many of them may be unfinished, None for the setting `tenant_jobs`.
    """

    tenant: str
    open_jobs: int | None = None
    allowance: Allowance = UNLIMITED


PUBLIC = Caller("public")


async def caller_of(request: Request) -> Caller:
    """The caller of a request, as the gate found it."""
    caller = request.scope["state"]["caller"]
    assert isinstance(caller, Caller)
    return caller


CallerDep = Annotated[Caller, Depends(caller_of)]
