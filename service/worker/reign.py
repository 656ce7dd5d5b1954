"""One revision at work in a worker process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from models.bundle import Bundle
from service.worker.worker import Worker


@dataclass(eq=False)
class Reign:
    """One revision at work, in a thread of its own. An heir works on the jobs that `revision` left open."""

    bundle: Bundle
    worker: Worker
    revision: str
    entered: bool = False
    over: bool = False
    crash: BaseException | None = None

    @property
    def heir(self) -> bool:
        """Whether the jobs are those of another revision than the weights."""
        return self.revision != self.bundle.revision

    def begin(self, ended: Callable[[], None]) -> None:
        """Start the thread, which calls `ended` at its end."""
        self._thread = threading.Thread(target=self._run, args=(ended,), name=self.revision)
        self._thread.start()

    def _run(self, ended: Callable[[], None]) -> None:
        try:
            self.worker.run()
        except BaseException as exc:
            self.crash = exc
        self.over = True
        ended()

    def cut_off(self) -> None:
        """Release what runs and what waits."""
        self.worker.drain_s = 0.0
        self.worker.stop()

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join()
