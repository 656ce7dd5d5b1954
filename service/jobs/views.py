"""Looking at one job in Redis."""

from service.errors import NotFound, ResultExpired
from service.jobs.job import JobView
from service.jobs.redis_link import AsyncLink

_NAMES = (
    *("state", "kind", "tenant", "created", "started", "finished", "attempts", "error_code"),
    *("error_message", "result", "rows", "cost"),
)


async def fetch_view(link: AsyncLink, job_id: str, tenant: str) -> JobView:
    """The job now, whosever it is; what has expired is known as such by its `tenant` alone.

    Raises NotFound, ResultExpired, Unavailable.
    """
    reply = await link.run("view", job_id, tombstone(tenant, job_id))
    if not reply:
        raise not_found(job_id)
    if reply == [b"gone"]:
        raise ResultExpired(f"the result of job {job_id} has expired")
    fields = dict(zip(_NAMES, reply, strict=False))
    return JobView.from_fields(job_id, fields, position=reply[-1])


def tombstone(tenant: str, job_id: str) -> str:
    """What is left of a tenant's job whose result has expired."""
    return f"{tenant}/{job_id}"


def not_found(job_id: str) -> NotFound:
    """The error of a job that is unknown, or another tenant's."""
    return NotFound(f"there is no job {job_id!r}")
