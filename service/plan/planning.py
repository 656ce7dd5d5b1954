"""From a wish to a plan: workers by simulation, the other parts by their measured costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from models.errors import InputError
from service.plan.fit import Fit
from service.plan.load import Flow, Load
from service.plan.part_costs import PartCosts
from service.plan.report import Plan
from service.plan.saturation import gateways_needed
from service.plan.sizing import Tell, Wish, alone_s, evaluate, needed, size
from service.plan.step_times import StepTimes


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What is around the workers; None is: as many, or as large, as follows from the rest."""

    gateways: int | None
    shards: int
    picture_bytes: float | None
    network_bits_s: float
    disk_bytes_s: float
    lease_s: float
    kept: float
    result_ttl_s: float
    price_per_hour: float | None


def make(
    wish: Wish,
    times: StepTimes,
    costs: PartCosts,
    around: Surroundings,
    *,
    p99_s: float | None,
    workers: int | None,
    tell: Tell = lambda text: None,
) -> Plan:
    """The plan for `p99_s`, or for `workers`; `tell` hears of each simulation. Raises InputError for none."""
    assert (p99_s is None) != (workers is None)
    alone = alone_s(wish, times)
    if alone > wish.deadline_s:
        raise InputError(f"--deadline is {wish.deadline_s:g} s, but one request alone takes {alone:.3g} s")
    fit = _fit(wish.of_shard(around.shards), times, around.shards, p99_s, workers, tell)
    load = _load(wish, times, costs, around, fit)
    return Plan(
        wish=wish,
        times=times,
        costs=costs,
        fit=fit,
        load=load,
        p99_s=p99_s,
        alone_s=alone,
        full_speed=needed(wish, times) / fit.workers,
        price_per_hour=around.price_per_hour,
    )


def _fit(
    wish: Wish, times: StepTimes, shards: int, p99_s: float | None, workers: int | None, tell: Tell
) -> Fit:
    """Of all shards, by the `wish` of one."""
    if workers is not None:
        if workers % shards:
            raise InputError(
                f"--workers is {workers}, and --shards {shards}: each shard has as many; take a multiple"
            )
        fit = evaluate(wish, times, workers // shards, tell=tell)
    else:
        assert p99_s is not None
        if p99_s > wish.deadline_s:
            raise InputError(
                f"--p99 is {p99_s:g} s, and --deadline {wish.deadline_s:g} s, after which none is answered; "
                "up to the deadline is allowed"
            )
        fit = size(wish, times, p99_s, tell=tell)
    return replace(fit, workers=shards * fit.workers)


def _load(wish: Wish, times: StepTimes, costs: PartCosts, around: Surroundings, fit: Fit) -> Load:
    load = Load(
        flows=tuple(_flows(wish, times, around, fit)),
        workers=fit.workers,
        gateways=around.gateways or 1,
        shards=around.shards,
        waiting=fit.most_waiting,
        open_jobs=fit.most_open,
        lease_s=around.lease_s,
        network_bits_s=around.network_bits_s,
        disk_bytes_s=around.disk_bytes_s,
        kept=around.kept,
        result_ttl_s=around.result_ttl_s,
    )
    return load if around.gateways else replace(load, gateways=gateways_needed(load, costs))


def _flows(wish: Wish, times: StepTimes, around: Surroundings, fit: Fit) -> Iterator[Flow]:
    picture_bytes = times.file_bytes if around.picture_bytes is None else around.picture_bytes
    yield Flow(rate=wish.rate, result_bytes=wish.images * picture_bytes)
    if wish.tokenize_rate:
        yield Flow(
            rate=wish.tokenize_rate,
            result_bytes=times.tokens_bytes,
            payload_bytes=times.pixels_bytes,
            open_jobs=fit.most_tokenizing,
        )
