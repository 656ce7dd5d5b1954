"""`maskbit bench load`: step-level batching against the batching of whole requests, on the same engine.

Requests of 8, 16, 32 and 64 steps arrive at random (Poisson), at a share of the speed that the engine reaches
when it never runs out of them. A request is good when it took no longer than a multiple of what one of its
step count takes alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from models.bench import hardware
from models.bundle import Bundle, open_bundle
from models.drawing import draw, generator_of
from models.runtime.base import Runtime
from models.runtime.loading import load_runtime
from service.bench.arrivals import STEPS, Arrival, Outcome, all_at_once, poisson
from service.bench.engine_run import run_engine
from service.bench.running import running_service
from service.bench.service_run import run_service
from service.bench.whole_requests import EarlyExitTable, FixedBatchTable
from service.worker.scheduler import SlotTable

_SATURATION_BATCHES = 4
_MOST_JOBS = 10_000  # none is to be refused
_TITLES = {
    SlotTable: "step-level",
    FixedBatchTable: "whole requests, fixed batch",
    EarlyExitTable: "whole requests, early exit",
}


def bench_load(
    ref: str,
    *,
    runtime_name: str,
    device: str,
    slots: int,
    requests: int,
    share: float,
    limit: float,
    through_service: bool,
) -> Iterator[str]:
    """Lines of the report: `share` of the saturated engine's speed is offered, `limit` x alone is good."""
    bundle = open_bundle(ref)
    runtime = load_runtime(bundle, runtime_name, device=device)
    runtime.warm_up()
    yield f"{bundle.ref} on {runtime.name} {runtime.precision}, {slots} slots; {hardware()}"
    _alone_s(runtime, bundle, STEPS[0])  # what the first run alone would pay for
    alone_s = {steps: _alone_s(runtime, bundle, steps) for steps in STEPS}
    yield "alone              " + ", ".join(f"{steps} steps {alone_s[steps]:.3f} s" for steps in STEPS)
    bare = _bare_rate(runtime, bundle, slots)
    yield f"bare full batches  {bare:8.3f} pictures/s, no engine around the runtime"
    full = all_at_once(_SATURATION_BATCHES * slots)
    saturated = run_engine(runtime, bundle.manifest, SlotTable(slots), full).rate
    yield f"engine, saturated  {saturated:8.3f} pictures/s, {saturated / bare:.2f} of bare"
    offered = share * saturated
    for table in (FixedBatchTable, EarlyExitTable):
        own = run_engine(runtime, bundle.manifest, table(slots), full).rate
        yield f"{_TITLES[table]}, saturated {own:.3f} pictures/s: {offered / own:.0%} of it is offered"
    arrivals = poisson(requests, offered)
    outcomes = {
        title: run_engine(runtime, bundle.manifest, table(slots), arrivals)
        for table, title in _TITLES.items()
    }
    if through_service:
        settings = {"slots": slots, "device": device, "open_jobs": _MOST_JOBS, "tenant_jobs": _MOST_JOBS}
        with running_service(runtime_name, bundle=ref, settings=settings) as service:
            classes = generator_of(bundle.manifest).nclass
            rate = run_service(service.port, classes, full).rate
            yield f"service, saturated {rate:8.3f} pictures/s, {rate / bare:.2f} of bare"
            outcomes["step-level, HTTP and queue"] = run_service(service.port, classes, arrivals)
    yield ""
    load = f"{requests} requests at {offered:.3f}/s, {share:.0%} of step-level saturation"
    yield f"{load}; good: within {limit:g} x alone"
    yield from _table(outcomes, alone_s, limit)


def _alone_s(runtime: Runtime, bundle: Bundle, steps: int) -> float:
    return run_engine(runtime, bundle.manifest, SlotTable(1), [Arrival(0, 0.0, steps)]).seconds


def _bare_rate(runtime: Runtime, bundle: Bundle, slots: int) -> float:
    """Pictures per second in full batches of one step count, one batch of each."""
    manifest = bundle.manifest
    labels = [k % generator_of(manifest).nclass for k in range(slots)]
    began = time.perf_counter()
    for steps in STEPS:
        sampling = replace(manifest.sampling, steps=steps)
        runtime.decode(draw(runtime, manifest, sampling, labels, list(range(slots))))
    return len(STEPS) * slots / (time.perf_counter() - began)


def _table(outcomes: dict[str, Outcome], alone_s: dict[int, float], limit: float) -> Iterator[str]:
    yield f"{'':28}   p50 s    p99 s  p99 x alone  good/s   ours/its p99  p99 x alone  good/s"
    ours = outcomes[_TITLES[SlotTable]]
    for title, one in outcomes.items():
        good, slowdown = one.goodput(limit, alone_s), one.slowdown(0.99, alone_s)
        line = (
            f"{title:28}{one.quantile_s(0.5):8.3f} {one.quantile_s(0.99):8.3f} {slowdown:12.1f} {good:7.3f}"
        )
        if one is not ours:
            more = ours.goodput(limit, alone_s) / good if good else float("inf")
            slower = ours.slowdown(0.99, alone_s) / slowdown
            line += f" {ours.quantile_s(0.99) / one.quantile_s(0.99):14.2f} {slower:12.2f} {more:7.2f}"
        yield line
