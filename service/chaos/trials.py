"""The scenarios of `maskbit chaos`: the system under every fault, each mutant under the one that shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from service.chaos.cluster import Shape
from service.chaos.fault_plan import KINDS, OVERLOAD_S, PlannedFault, plan_faults
from service.chaos.mutants import MUTANTS
from service.chaos.run import Scenario, bursts_of
from service.chaos.workload import plan_requests

RATE = 28.0
"""Requests a second outside overloads: about half of what the workers can do."""
REQUESTS_PER_POISON = 1000
CONTROL_CALM_S = 20.0


def whole(requests: int, faults: int, seed: int) -> Scenario:
    """`requests` of all kinds while `faults` of all kinds go on."""
    shape = Shape()
    overloads = -(-faults // len(KINDS))
    seconds = max(5.0, (requests - overloads * 4 * RATE * OVERLOAD_S) / RATE)
    planned = plan_faults(faults, seconds, seed, gateways=_gateways(shape), workers=_workers(shape))
    poison = -(-requests // REQUESTS_PER_POISON)
    orders = plan_requests(requests, seconds, seed, bursts=bursts_of(planned, RATE), poison=poison)
    return Scenario(orders, planned, seed, shape)


def _gateways(shape: Shape) -> list[str]:
    return [f"gateway-{k}" for k in range(shape.gateways)]


def _workers(shape: Shape) -> list[str]:
    return [f"worker-{k}" for k in range(shape.workers)]


@dataclass(frozen=True)
class _Trial:
    """The traffic and the faults, (at_s, kind, target) each, that bring a mutant to light."""

    mix: Mapping[str, float]
    faults: Sequence[tuple[float, str, str]]
    steps: Sequence[int] = (8, 16)
    requests: int = 150
    seconds: float = 7.0
    step_s: float = 0.025
    fsync_ms: int = 0
    calm_s: float = 4.0
    workers: int = 3


_POLLS = {"poll": 1.0}
# One less than would make an innocent job count as poison, should it be hit each time.
_WORKER_KILLS = [(1.0 + 2.5 * k, "worker-kill-at-run", f"worker-{k}") for k in range(2)]
_WORKER_STOPS = [(1.0 + 1.2 * k, "worker-stop", f"worker-{k % 3}") for k in range(4)]
_TRIALS = {
    "noack": _Trial(_POLLS, _WORKER_KILLS),
    "ack-before-result": _Trial(_POLLS, _WORKER_KILLS),
    "no-terminal-guard": _Trial({"poll": 0.7, "cancel": 0.3}, _WORKER_STOPS),
    # Jobs that take longer than a lease, so that two workers draw them at the same time, and so many that
    # each worker holds some whenever it is stopped.
    "steal-back": _Trial(
        _POLLS,
        [(2.0, "worker-stop", "worker-0"), (6.0, "worker-stop", "worker-1")],
        steps=(16,),
        requests=36,
        seconds=9.0,
        step_s=0.2,
        calm_s=20.0,
    ),
    # One gateway stands still while the other one turns, and then has requests before it has looked.
    "door-never-closed": _Trial(
        {"repeat": 1.0},
        [
            (1.0 + 4.0 * k + late_s, kind, target)
            for k in range(4)
            for late_s, kind, target in ((0.0, "publish", "bundle"), (0.1, "gateway-stop", "gateway-1"))
        ],
        requests=400,
        seconds=16.0,
    ),
    # Full all the time, for longer than clients look for a job that is missing.
    "owed-ignored": _Trial(
        _POLLS,
        [(5.0, "redis-emptied", "redis")],
        steps=(8,),
        requests=420,
        seconds=27.0,
        step_s=0.1,
        workers=1,
        calm_s=60.0,
    ),
    "result-changed": _Trial({"wait": 0.5, "poll": 0.5}, [], requests=30, seconds=2.0),
    # Its control is without the slow disk too: the same faults on a Redis that confirms at once.
    "everysec-slow-fsync": _Trial(
        {"poll": 0.6, "repeat": 0.2, "cancel": 0.2},
        [
            (moment + 0.01 * k, kind, target)
            for moment in (2.0, 4.5, 7.0)
            for k, (kind, target) in enumerate(
                (("gateway-kill", "gateway-0"), ("gateway-kill", "gateway-1"), ("redis-kill", "redis"))
            )
        ],
        requests=240,
        seconds=8.0,
        fsync_ms=1800,
    ),
}


def of_mutant(name: str, seed: int, *, control: bool = False) -> Scenario:
    """A short run in which the mutant `name` has to be found; a `control` is without it, and all holds."""
    trial = _TRIALS[name]
    shape = Shape(step_s=trial.step_s, workers=trial.workers)
    if not control:
        shape = replace(shape, mutant=name, fsync=MUTANTS[name].fsync)
    orders = plan_requests(trial.requests, trial.seconds, seed, mix=trial.mix, steps=trial.steps)
    faults = [PlannedFault(at_s, kind, target, size=0.5) for at_s, kind, target in trial.faults]
    # A control ends as soon as all is done; a mutant's run waits for what never comes.
    calm_s = max(trial.calm_s, CONTROL_CALM_S) if control else trial.calm_s
    return Scenario(orders, faults, seed, shape, calm_s=calm_s, fsync_ms=0 if control else trial.fsync_ms)
