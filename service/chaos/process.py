"""A supervised process: started again as soon as it ends, as an orchestrator would."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from service.chaos.journal import Journal, Life, now
from service.parent import SUPERVISED

_STOP_S = 10.0
_BREATH_S = 0.1
"""Between two starts, so that a process that cannot start does not take the machine."""


def clean_environment() -> dict[str, str]:
    """This process's environment without settings of a service, and with one thread a process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MASKBIT_", "CHAOS_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", SUPERVISED: "1"}


async def eventually(check: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
    """Wait until `check` says yes. Raises TimeoutError."""
    # No asyncio.timeout: redis-py swallows a cancellation that meets it while it connects.
    deadline = time.monotonic() + timeout_s
    while not await check():
        if time.monotonic() > deadline:
            raise TimeoutError
        await asyncio.sleep(0.02)


class Supervised:
    """One process by name. `prepare` runs before each start."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        journal: Journal,
        prepare: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.name = name
        self._command = command
        self._environment = environment
        self._log = log
        self._journal = journal
        self._prepare = prepare
        self._process: asyncio.subprocess.Process | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._hold = asyncio.Event()
        self._hold.set()
        self.starts = 0

    @property
    def pid(self) -> int:
        """Process id of the current life, 0 between two lives."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Start it and keep it running."""
        self._supervision = asyncio.create_task(self._supervise(), name=self.name)

    async def _supervise(self) -> None:
        while True:
            await self._hold.wait()
            if self._prepare is not None:
                await self._prepare()
            began = now()
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    env=dict(self._environment),
                    # The pipe tells the process when this one is gone.
                    stdin=asyncio.subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    # Python ignores SIGXFSZ; so does the child then, to whom a full disk is an error.
                    restore_signals=False,
                )
            self.starts += 1
            pid = self._process.pid
            await self._process.wait()
            self._process = None
            self._journal.write(Life(began, now(), self.name, pid))
            await asyncio.sleep(_BREATH_S)

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing when it has just ended."""
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def hold(self) -> None:
        """Do not start it again before `resume`."""
        self._hold.clear()

    def resume(self) -> None:
        """Start it again."""
        self._hold.set()

    async def gone(self, life: int, timeout_s: float) -> bool:
        """Wait until life number `life` (the value of `starts` in it) has ended; False after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.starts > life or (self.starts == life and not self.pid):
                return True
            await asyncio.sleep(0.01)
        return False

    async def stop(self) -> None:
        """End it for good: SIGTERM, then SIGKILL."""
        process = self._process
        if self._supervision is not None:
            self._supervision.cancel()
            await asyncio.gather(self._supervision, return_exceptions=True)
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.terminate()
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _STOP_S)
                return
            process.kill()
            await process.wait()
