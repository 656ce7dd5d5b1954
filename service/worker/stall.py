"""Ends a process whose engine hangs."""

from __future__ import annotations

import logging
import os
import time

from service.worker.engine import Engine

log = logging.getLogger(__name__)

# A turn hangs when it takes longer than both; the process then ends, and the queue redelivers its jobs.
FLOOR_S = 60.0
FACTOR = 5  # times the longest turn so far
# Of a runtime in a turn, at most: steps with and without guidance, previews, pictures, and one more.
CALLS = 5
STALLED = 3  # exit code


class StallWatch:
    """To be asked often. `call_limit_s`: when a call of the runtime ends by itself, 0 where none does."""

    def __init__(self, engine: Engine, call_limit_s: float) -> None:
        self._engine = engine
        # What waits for a server is no hang.
        self._floor_s = FLOOR_S + CALLS * call_limit_s
        self._turns = -1
        self._seen_at_s = time.monotonic()

    def look(self) -> None:
        """End the process if no turn has ended for too long: no exception reaches a thread in the model."""
        now_s, engine = time.monotonic(), self._engine
        if engine.turns != self._turns or engine.idle:
            self._turns, self._seen_at_s = engine.turns, now_s
            return
        still_s = now_s - self._seen_at_s
        if still_s > max(self._floor_s, FACTOR * engine.longest_turn_s):
            log.critical("no step ended for %.0f s; the worker ends, its leases with it", still_s)
            os._exit(STALLED)
