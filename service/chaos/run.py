"""One chaos run from start to verdict: a cluster, traffic, faults, calm, and the journal of it all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from service.chaos.clients import Clients
from service.chaos.cluster import Cluster, Shape
from service.chaos.fault_plan import OVERLOAD, OVERLOAD_S, PlannedFault
from service.chaos.faults import Injector
from service.chaos.journal import Bounds, Event, Journal, Rest, now
from service.chaos.observer import Observer
from service.chaos.workload import Burst, Request

_CALM_S = 60.0
_REST_PERIOD_S = 0.25


@dataclass(frozen=True)
class Scenario:
    """What is sent and what is done to the system meanwhile. `calm_s`: time to come to rest after it."""

    requests: Sequence[Request]
    faults: Sequence[PlannedFault]
    seed: int
    shape: Shape = field(default_factory=Shape)
    calm_s: float = _CALM_S
    fsync_ms: int = 0


def bursts_of(faults: Sequence[PlannedFault], rate: float) -> list[Burst]:
    """The overloads of a plan: five times as many requests."""
    extra = int(4 * rate * OVERLOAD_S)
    return [Burst(fault.at_s, OVERLOAD_S, extra) for fault in faults if fault.kind == OVERLOAD]


async def run(scenario: Scenario, folder: Path) -> list[Event]:
    """The journal of the run, which is also in `folder`, with the logs of all processes."""
    journal = Journal(folder / "journal.jsonl")
    cluster = Cluster(scenario.shape, folder, journal)
    observer = Observer(cluster.redis.url, cluster.revisions, journal)
    clients = None
    try:
        await cluster.start()
        overload = any(fault.kind == OVERLOAD for fault in scenario.faults)
        empty_bytes = await observer.used_bytes()
        shape = scenario.shape
        journal.write(Bounds(now(), shape.open_jobs, shape.lease_s, overload, empty_bytes))
        observer.start()
        fronts = {name: proxy.port for name, proxy in cluster.fronts.items()}
        clients = Clients(fronts, journal, scenario.seed)
        cluster.redis.disk.slow(scenario.fsync_ms)
        async with asyncio.TaskGroup() as group:
            traffic = group.create_task(clients.run(scenario.requests))
            await Injector(cluster).run(scenario.faults)
            await cluster.heal()
            done, _ = await asyncio.wait([traffic], timeout=scenario.calm_s + _left_s(scenario))
            if not done:
                traffic.cancel()
        journal.write(await _rest(observer, scenario.calm_s))
    finally:
        if clients is not None:
            clients.close()
        try:
            await observer.stop()
        finally:
            await cluster.stop()
            journal.close()
    return journal.events


def _left_s(scenario: Scenario) -> float:
    """Seconds of traffic after the last fault was due."""
    last_fault = max((fault.at_s for fault in scenario.faults), default=0.0)
    return max(0.0, scenario.requests[-1].at_s - last_fault)


async def _rest(observer: Observer, calm_s: float) -> Rest:
    """What is left as soon as nothing is, at the latest after `calm_s`."""
    deadline = now() + calm_s
    while True:
        rest = await observer.rest()
        if now() > deadline or not (rest.open or rest.entries or rest.pending or rest.tenant_jobs):
            return rest
        await asyncio.sleep(_REST_PERIOD_S)
