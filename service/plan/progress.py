"""Telling what a plan is doing when it takes its time."""

from __future__ import annotations

import time
from collections.abc import Callable

_PATIENCE_S = 3.0


class Progress:
    """Passes lines on to `echo` once some seconds have gone by, each with the time so far."""

    def __init__(self, echo: Callable[[str], None]) -> None:
        self._echo = echo
        self._began_s = time.monotonic()

    def tell(self, text: str) -> None:
        """Of a step of the work that is done."""
        seconds = time.monotonic() - self._began_s
        if seconds > _PATIENCE_S:
            self._echo(f"simulating for {seconds:.0f} s: {text}")
