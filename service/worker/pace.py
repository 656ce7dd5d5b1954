"""How fast the network was lately, at its best: what forecasts are made of."""

from __future__ import annotations

import time
from collections.abc import Callable

_FORGET = 0.05  # share of the gap by which a record gives way to each slower call
_CLOCK_S = 1e-6  # no call is shorter, whatever the clock says
_RECENT_S = 60.0  # what is older says nothing about now


class Pace:
    """Recent best times of network calls by their size.

    A forecast that is too slow turns work away for nothing, so a faster call counts at once and slower ones
    by and by. And it ends: work that is turned away as too slow is not measured, so nothing else would show
    that the slowness has passed. One thread notes, any may ask.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        # By size: seconds, and when the last call of that size was noted.
        self._calls: dict[int, tuple[float, float]] = {}

    def note(self, size: int, seconds: float) -> None:
        """A call with `size` rows or pictures, padding included, took `seconds`."""
        seconds = max(seconds, _CLOCK_S)
        best = self._recent().get(size, seconds)
        self._calls[size] = min(seconds, best + _FORGET * (seconds - best)), self._clock()

    @property
    def per_s(self) -> float | None:
        """Rows or pictures per second at the best size.

        None unless a recent call was more than half as large as they get: small ones say nothing about those.
        """
        known = self._recent().items()
        return max((size / seconds for size, seconds in known if 2 * size > self._most), default=None)

    @property
    def call_s(self) -> float | None:
        """Seconds of the shortest recent call, None for none."""
        return min(self._recent().values(), default=None)

    def _recent(self) -> dict[int, float]:
        """Seconds by size."""
        since = self._clock() - _RECENT_S
        return {size: seconds for size, (seconds, noted) in list(self._calls.items()) if noted >= since}
