"""Commands around the gateway."""

from __future__ import annotations

from typing import Annotated

import typer

_Limit = Annotated[int | None, typer.Option(min=1)]


def keys_new(
    name: Annotated[str, typer.Argument(help="Whose key it is: 1 to 64 of A-Z a-z 0-9 . _ -")],
    requests_per_minute: _Limit = None,
    burst: Annotated[
        int | None, typer.Option(min=1, help="Requests at once; by default those of a minute.")
    ] = None,
    images_per_day: _Limit = None,
    concurrent_jobs: _Limit = None,
) -> None:
    """Make an API key and print the entry for the file that MASKBIT_API_KEYS_FILE names.

    The key itself goes to standard error, so that it does not end up in that file.
    """
    from service.gateway.api_keys import checked, digest_of, entry_of, new_key

    key = new_key()
    limits = {
        "requests_per_minute": requests_per_minute,
        "burst": burst,
        "images_per_day": images_per_day,
        "concurrent_jobs": concurrent_jobs,
    }
    given = {field: limit for field, limit in limits.items() if limit is not None}
    entry = checked("the new key", name, {"sha256": digest_of(key), **given})
    typer.echo(f"the key of {name}, shown this once: {key}", err=True)
    typer.echo(entry_of(entry))
