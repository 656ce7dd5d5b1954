"""A gateway or worker of a chaos run: the product's own command, with what the run needs patched around it.

`python -m service.chaos.entry gateway|worker`. From the environment: CHAOS_MUTANT, a mutant's name;
CHAOS_STEP_S, how long a sampling step takes; CHAOS_TRAP, a file that names the line at which this worker is
to kill itself. The other settings are the service's.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LINES = ("read", "begin", "run", "finish", "reply")
"""Where a worker can be killed: after reading an entry, after the attempt began, inside a step, before its
result is sent, after it was recorded and before the worker knows."""

READ_ENTRY = 6
"""Which argument of the script `claim` is the entry that was read before."""


class Trap:
    """Kills this process when it passes the line that the file names."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def passing(self, line: str) -> None:
        """Say that the process is at `line` now."""
        try:
            armed = self._file.read_text() == line
        except FileNotFoundError:
            return
        if armed:
            self._file.unlink(missing_ok=True)
            os.kill(os.getpid(), signal.SIGKILL)


def replace(owner: object, name: str, value: object) -> None:
    """Patch `owner` in this process."""
    setattr(owner, name, value)


def break_protocol(name: str) -> None:
    """Load the scripts of the mutant `name` instead of the product's."""
    from service.chaos.mutants import MUTANTS, mutated
    from service.jobs import scripts
    from service.jobs.redis_link import ThreadLink

    mutant = MUTANTS[name]
    replace(scripts, "source", mutated(mutant))
    if mutant.no_ack:
        plain = ThreadLink.call

        def call(link: ThreadLink, *command: Any) -> Any:
            known = ("NOACK",) if command[0] == "XREADGROUP" else ()
            return plain(link, *command[:4], *known, *command[4:])

        replace(ThreadLink, "call", call)


def set_traps(trap: Trap) -> None:
    """Tell `trap` about each script call of the job protocol."""
    from service.jobs.redis_link import ThreadLink

    plain = ThreadLink.run_all

    def run_all(link: ThreadLink, name: str, calls: Sequence[Sequence[Any]]) -> list[Any]:
        # A claim with the entry that a blocking read brought.
        if name == "claim" and calls[0][READ_ENTRY]:
            trap.passing("read")
        if name == "finish":
            trap.passing("finish")
        [reply, *_] = replies = plain(link, name, calls)
        if (name == "claim" and reply) or (name == "reclaim" and reply[1]):
            trap.passing("begin")
        if name == "finish":
            trap.passing("reply")
        return replies

    replace(ThreadLink, "run_all", run_all)


def slow_steps(seconds: float, trap: Trap) -> None:
    """Let a step of the no-op runtime take time, and die of poison."""
    from models.runtime.base import StepBatch, StepResult
    from models.runtime.noop_runtime import NoopRuntime
    from service.chaos.workload import POISON_CLASS

    plain = NoopRuntime.step

    def step(runtime: NoopRuntime, batch: StepBatch) -> StepResult:
        time.sleep(seconds)
        trap.passing("run")
        if (batch.labels == POISON_CLASS).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(runtime, batch)

    replace(NoopRuntime, "step", step)


def main() -> None:
    """Patch, then become the product's command."""
    from service import cli

    role = sys.argv[1]
    if os.environ.get("CHAOS_MUTANT"):
        break_protocol(os.environ["CHAOS_MUTANT"])
    if role == "worker":
        trap = Trap(Path(os.environ["CHAOS_TRAP"]))
        set_traps(trap)
        slow_steps(float(os.environ["CHAOS_STEP_S"]), trap)
        cli.worker()
    else:
        cli.gateway()


if __name__ == "__main__":
    main()
