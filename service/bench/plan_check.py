"""`maskbit bench plan`: what `maskbit plan` predicts beside what the real service does under the same load.

Two kinds of load. Paced workers, whose network takes a set time, show whether queue, claims and batches are
right, with several workers on few cores. The bundled model shows whether measured step times carry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from models.bench import hardware
from models.bundle import open_bundle
from models.drawing import generator_of
from models.runtime.loading import load_runtime
from models.runtime.noop_runtime import NoopRuntime
from service.bench.arrivals import Arrival, Outcome, all_at_once, poisson
from service.bench.paced import pace
from service.bench.paced_service import paced_service
from service.bench.running import running_service
from service.bench.service_run import run_service
from service.bench.steps import lines_of, measure, service_s
from service.plan.requests import Request
from service.plan.simulation import Scene, simulate
from service.plan.step_times import StepTimes

CALL_S, ROW_S = 0.02, 0.001
_PACED_SLOTS, _MODEL_SLOTS = 8, 16
_MOST_JOBS = 10_000
_DEADLINE_S = 600.0
_ROUNDS = 5
_SERVICE_S = 2.0
_FULL = 4  # times the slots, to fill them for long enough
_WARM_UP = 8
_THREADS = 1  # of the model: gateway, Redis and client are to have other cores
HEADER = f"{'':10}{'workers':>8}{'load':>6}{'requests':>9}" + 2 * "  predicted  measured  ratio"


@dataclass(frozen=True)
class Comparison:
    """Latencies in seconds of the same arrivals, simulated and real."""

    workers: int
    load: float
    predicted: Outcome
    measured: Outcome

    def line(self, title: str) -> str:
        """p50 and p99 side by side."""
        numbers = "".join(
            f"{self.predicted.quantile_s(share):11.3f}{self.measured.quantile_s(share):10.3f}"
            f"{self.ratio(share):7.2f}"
            for share in (0.5, 0.99)
        )
        return f"{title:10}{self.workers:8}{self.load:6.0%}{len(self.measured.latencies):9}{numbers}"

    def ratio(self, share: float) -> float:
        """Of the predicted quantile to the measured one."""
        return self.predicted.quantile_s(share) / self.measured.quantile_s(share)


def bench_plan(
    *,
    bundle: str,
    workers: Sequence[int],
    loads: Sequence[float],
    requests: int,
    model_requests: int,
    seed: int,
) -> Iterator[str]:
    """Lines of the report; without `model_requests` the bundle's own network is left out."""
    yield f"latencies in s, p50 and then p99; {hardware()}"
    around_s = service_s(_SERVICE_S)
    ratios = []
    paced = replace(measure_paced(bundle), service_s=around_s)
    ms = f"{CALL_S * 1e3:g} ms, a row {ROW_S * 1e3:g} ms more"
    yield f"paced workers: a call takes {ms}; {_PACED_SLOTS} slots"
    yield HEADER
    for count in workers:
        for one in compare(paced, count, loads, requests, seed, bundle, partial(_paced, bundle, count)):
            ratios += [one.ratio(0.5), one.ratio(0.99)]
            yield one.line("paced")
    if model_requests:
        times = replace(measure_model(bundle), service_s=around_s)
        yield f"{times.model} on {times.runtime}, {times.slots} slots"
        yield from lines_of(times)
        yield HEADER
        real = partial(_model, bundle, times.slots)
        for one in compare(times, 1, loads, model_requests, seed, bundle, real):
            ratios += [one.ratio(0.5), one.ratio(0.99)]
            yield one.line(open_bundle(bundle).manifest.name)
    yield f"predicted over measured: from {min(ratios):.2f} to {max(ratios):.2f}"


def compare(
    times: StepTimes,
    workers: int,
    loads: Sequence[float],
    requests: int,
    seed: int,
    bundle: str,
    service: Callable[[], AbstractContextManager[int]],
) -> Iterator[Comparison]:
    """The load of each share of the simulated capacity, on a service of `workers`."""
    scene = Scene(
        times=times, workers=workers, slots=times.slots, deadline_s=_DEADLINE_S, open_jobs=_MOST_JOBS
    )
    full = predict(scene, all_at_once(_FULL * workers * times.slots)).rate
    classes = generator_of(open_bundle(bundle).manifest).nclass
    with service() as port:
        run_service(port, classes, all_at_once(_WARM_UP))
        for load in loads:
            arrivals = poisson(requests, load * full, seed)
            yield Comparison(workers, load, predict(scene, arrivals), run_service(port, classes, arrivals))


def predict(scene: Scene, arrivals: Sequence[Arrival]) -> Outcome:
    """The simulated fate of `arrivals`."""
    by_number = {one.number: one for one in arrivals}
    outcome = simulate(scene, [Request(one.number, one.at_s, 1, one.steps) for one in arrivals])
    assert outcome.answered == len(arrivals)
    latencies = {by_number[one.number]: seconds for one, seconds in outcome.latencies.items()}
    return Outcome(latencies, outcome.seconds)


def measure_model(ref: str) -> StepTimes:
    """Step times of the bundle's own network, as the worker will choose it."""
    bundle = open_bundle(ref)
    runtime = load_runtime(bundle, "torch", threads=_THREADS)
    runtime.warm_up()
    return measure(runtime, bundle, _MODEL_SLOTS, _ROUNDS)


def measure_paced(ref: str) -> StepTimes:
    """Step times of a paced runtime, what the engine adds included."""
    bundle = open_bundle(ref)
    with _pace_here():
        return measure(NoopRuntime(bundle), bundle, _PACED_SLOTS, _ROUNDS)


@contextmanager
def _pace_here() -> Iterator[None]:
    step, decode = NoopRuntime.step, NoopRuntime.decode
    pace(CALL_S, ROW_S)
    try:
        yield
    finally:
        setattr(NoopRuntime, "step", step)  # noqa: B010
        setattr(NoopRuntime, "decode", decode)  # noqa: B010


def _paced(bundle: str, workers: int) -> AbstractContextManager[int]:
    settings = {"slots": _PACED_SLOTS, "open_jobs": _MOST_JOBS, "tenant_jobs": _MOST_JOBS}
    return paced_service(workers, CALL_S, ROW_S, bundle=bundle, settings=settings)


@contextmanager
def _model(bundle: str, slots: int) -> Iterator[int]:
    settings = {"slots": slots, "threads": _THREADS, "open_jobs": _MOST_JOBS, "tenant_jobs": _MOST_JOBS}
    with running_service("torch", bundle=bundle, settings=settings) as service:
        yield service.port
