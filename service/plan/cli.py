"""`maskbit plan`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from models.errors import InputError


def plan(
    rate: Annotated[str, typer.Option(help="Requests that draw, such as 50/s or 3000/min.")],
    steps: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Of a picture [those of the step times].")
    ] = None,
    p99: Annotated[str | None, typer.Option(help="99 % of each kind are answered within.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="How so many fare, in place of --p99.")
    ] = None,
    bench: Annotated[Path | None, typer.Option(help="Step times: a file of maskbit bench steps.")] = None,
    step_times: Annotated[
        str | None, typer.Option(help="Assumed ones, by network rows, such as 2:9ms,32:30ms,128:95ms.")
    ] = None,
    decode_times: Annotated[
        str | None, typer.Option(help="Assumed ones, by pictures together, such as 1:6ms,16:70ms.")
    ] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Of a worker [those of the step times].")] = None,
    guidance_scale: Annotated[float | None, typer.Option(min=0, help="[that of the step times]")] = None,
    images: Annotated[int, typer.Option(min=1, max=256, help="Pictures of a request.")] = 1,
    tokenize: Annotated[str | None, typer.Option(help="Pictures to tokenize meanwhile, such as 5/s.")] = None,
    deadline: Annotated[str, typer.Option(help="Of each request.")] = "60s",
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, max=1e9, help="Of a worker with its GPU.")
    ] = None,
    parts: Annotated[Path | None, typer.Option(help="Part costs: a file of maskbit bench parts.")] = None,
    gateways: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="[as many as the load needs]")
    ] = None,
    shards: Annotated[
        int, typer.Option(min=1, max=10_000, help="Redis servers, each with its own workers.")
    ] = 1,
    picture_bytes: Annotated[str | None, typer.Option(help="File size, such as 90kB [as measured].")] = None,
    network: Annotated[str, typer.Option(help="Of the machine of Redis, each way, assumed.")] = "10Gbit/s",
    disk: Annotated[str, typer.Option(help="What the disk of Redis writes, assumed.")] = "125MB/s",
    keep_results: Annotated[
        float, typer.Option(min=0, max=1, help="Share of background jobs and idempotency keys.")
    ] = 0.0,
    result_ttl: Annotated[str, typer.Option(help="MASKBIT_RESULT_TTL_S.")] = "600s",
    requests: Annotated[
        int, typer.Option(min=100, max=1_000_000, help="That draw, simulated with each seed.")
    ] = 4000,
    seed: Annotated[int, typer.Option(min=0, help="The first of three, of arrivals.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One object for programs.")] = False,
) -> None:
    """How many workers a load needs, how they fare, and what saturates first."""
    from service.plan import units
    from service.plan.planning import Surroundings, make
    from service.plan.progress import Progress
    from service.plan.sizing import Wish
    from service.plan.sources import adapted, costs_from, times_from
    from service.settings import Settings

    if (p99 is None) == (workers is None):
        raise InputError("give --p99, for the fewest workers, or else --workers, for how so many fare")
    times = times_from(
        bench,
        units.seconds_by_size("--step-times", step_times) if step_times is not None else None,
        units.seconds_by_size("--decode-times", decode_times) if decode_times is not None else None,
    )
    slots = slots or times.slots
    wish = Wish(
        rate=units.per_second("--rate", rate),
        images=images,
        steps=steps or times.sampling.steps,
        tokenize_rate=units.per_second("--tokenize", tokenize) if tokenize is not None else 0.0,
        slots=slots,
        deadline_s=units.seconds("--deadline", deadline),
        requests=requests,
        seed=seed,
    )
    around = Surroundings(
        gateways=gateways,
        shards=shards,
        picture_bytes=units.byte_count("--picture-bytes", picture_bytes) if picture_bytes else None,
        network_bits_s=units.bits_per_second("--network", network),
        disk_bytes_s=units.bytes_per_second("--disk", disk),
        kept=keep_results,
        result_ttl_s=units.seconds("--result-ttl", result_ttl),
        lease_s=Settings.model_fields["lease_s"].default,
        price_per_hour=price_per_hour,
    )
    made = make(
        wish,
        adapted(times, guidance_scale=guidance_scale, slots=slots),
        costs_from(parts),
        around,
        p99_s=units.seconds("--p99", p99) if p99 is not None else None,
        workers=workers,
        tell=Progress(partial(typer.echo, err=True)).tell,
    )
    if as_json:
        typer.echo(json.dumps(made.values(), indent=1))
        return
    for line in made.lines():
        typer.echo(line)
