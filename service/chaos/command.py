"""All runs of one `maskbit chaos`: the system as it is must hold, every mutant must be found."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from models.errors import ConfigError
from service.chaos import report, trials
from service.chaos.checker import check
from service.chaos.journal import Event
from service.chaos.mutants import MUTANTS
from service.chaos.run import Scenario, run
from service.chaos.slow_disk import compiler

Say = Callable[[str], None]
_T = TypeVar("_T")

_AT_ONCE = 2
"""Mutants that run at the same time."""
_TRIES = 3
"""Runs that a mutant has to show itself in: the processes are real, and when they are hit is chance."""


def run_all(
    *,
    requests: int,
    faults: int,
    seeds: Iterable[int],
    mutants: Iterable[str] | None,
    controls: bool,
    output: Path | None,
    say: Say,
) -> bool:
    """Whether everything went as it must. `mutants`: names, None for all of them.

    `controls` repeats each mutant's run without the mutant: there everything must hold.
    Journals and logs go to the empty folder `output`, or to a temporary one that is kept when a run fails.
    """
    names = list(MUTANTS if mutants is None else mutants)
    for name in names:
        if name not in MUTANTS:
            raise ConfigError(f"mutant is {name!r}; there are {', '.join(MUTANTS)}")
    if output is not None and output.is_dir() and any(output.iterdir()):
        raise ConfigError(
            f"output is {output}, which is not empty: an older run's Redis file would be read again"
        )
    folder = Path(tempfile.mkdtemp(prefix="maskbit-chaos-")) if output is None else output
    good = True
    for seed in seeds:
        say(f"== seed {seed}: {requests} requests, {faults} faults")
        good &= _as_it_is(trials.whole(requests, faults, seed), folder / f"seed-{seed}", say)
    if names:
        say("== mutants: every one has to be found")
        good &= _broken(names, folder, say, control=False)
    if controls:
        say("== the same without the mutants: everything has to hold")
        good &= _broken(names, folder, say, control=True)
    if output is None and good:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        say(f"journals and logs: {folder}")
    say(
        "verdict: every promise holds" + (", every mutant was found" if names else "")
        if good
        else "verdict: FAILED"
    )
    return good


def _as_it_is(scenario: Scenario, folder: Path, say: Say) -> bool:
    started = time.monotonic()
    events = asyncio.run(_until_stopped(_journal_of(scenario, folder)))
    verdict = check(events)
    for line in report.table(events, verdict):
        say(line)
    if compiler() is None:
        say("left out: a slow disk, for want of a C compiler")
    say(f"{'holds' if verdict.holds else 'VIOLATED'} after {time.monotonic() - started:.0f} s")
    return verdict.holds


def _broken(names: Sequence[str], folder: Path, say: Say, *, control: bool) -> bool:
    """Run the mutants, some at a time, since they mostly wait; whether each run went as it must."""
    left_out = [name for name in names if MUTANTS[name].fsync != "always" and compiler() is None]
    for name in left_out:
        say(f"mutant {name:<20}  left out, for want of a C compiler")

    async def all_of_them() -> list[bool]:
        turns = asyncio.Semaphore(_AT_ONCE)
        wanted = [name for name in names if name not in left_out]
        trial = _holds if control else _found
        return await asyncio.gather(*(trial(name, folder, turns, say) for name in wanted))

    return all(asyncio.run(_until_stopped(all_of_them())))


async def _found(name: str, folder: Path, turns: asyncio.Semaphore, say: Say) -> bool:
    for seed in range(1, _TRIES + 1):
        async with turns:
            events = await _journal_of(trials.of_mutant(name, seed), folder / f"{name}-{seed}")
        verdict = check(events)
        found = any(verdict.found[rule] for rule in MUTANTS[name].shows)
        say(f"mutant {name:<20}  {'found by' if found else 'not found'}: {report.violations(verdict)}")
        if found:
            return True
    return False


async def _holds(name: str, folder: Path, turns: asyncio.Semaphore, say: Say) -> bool:
    async with turns:
        scenario = trials.of_mutant(name, seed=1, control=True)
        events = await _journal_of(scenario, folder / f"{name}-control")
    verdict = check(events)
    say(f"control {name:<19}  {'holds' if verdict.holds else f'VIOLATED: {report.violations(verdict)}'}")
    return verdict.holds


async def _journal_of(scenario: Scenario, folder: Path) -> list[Event]:
    folder.mkdir(parents=True, exist_ok=True)
    return await run(scenario, folder)


async def _until_stopped(work: Coroutine[Any, Any, _T]) -> _T:
    """Do `work`; SIGTERM ends it like Ctrl-C, so that no process is left."""
    task = asyncio.create_task(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
