"""`maskbit chaos`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def chaos(
    requests: Annotated[int, typer.Option(min=50, help="Requests of each run.")] = 2000,
    faults: Annotated[int, typer.Option(min=0, help="Faults of each run.")] = 40,
    seeds: Annotated[int, typer.Option(min=1, help="Runs, each with a seed of its own.")] = 1,
    first_seed: Annotated[int, typer.Option(min=0, help="Seed of the first run.")] = 1,
    mutants: Annotated[
        bool | None, typer.Option("--mutants/--no-mutants", help="Only the mutants, or none of them.")
    ] = None,
    mutant: Annotated[str | None, typer.Option(help="Only this mutant.")] = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Run what finds the mutants on the system as it is, too.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Folder for journals and logs; by default those of failed runs.")
    ] = None,
) -> None:
    """Break the service on purpose, with real processes, and check every promise of its job queue."""
    from service.chaos.command import run_all

    names = [mutant] if mutant else None
    good = run_all(
        requests=requests,
        faults=faults,
        seeds=range(first_seed, first_seed + seeds) if not (mutants or mutant) else (),
        mutants=names if names else (() if mutants is False else None),
        controls=controls,
        output=output,
        say=typer.echo,
    )
    if not good:
        raise typer.Exit(1)
