"""How fast the network was lately, at its best: what forecasts are made of."""

from __future__ import annotations

_FORGET = 0.05  # share of the gap by which a record gives way to each slower call
_CLOCK_S = 1e-6  # no call is shorter, whatever the clock says


class Pace:
    """Recent best times of network calls by their size.

    A forecast that is too slow turns work away for nothing, so a faster call counts at once and slower ones
    by and by. One thread notes, any may ask.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._seconds: dict[int, float] = {}

    def note(self, size: int, seconds: float) -> None:
        """A call with `size` rows or pictures, padding included, took `seconds`."""
        seconds = max(seconds, _CLOCK_S)
        best = self._seconds.get(size, seconds)
        self._seconds[size] = min(seconds, best + _FORGET * (seconds - best))

    @property
    def per_s(self) -> float | None:
        """Rows or pictures per second at the best size.

        None before a call was more than half as large as they get: small ones say nothing about large ones.
        """
        known = list(self._seconds.items())
        return max((size / seconds for size, seconds in known if 2 * size > self._most), default=None)

    @property
    def call_s(self) -> float | None:
        """Seconds of the shortest call, None before the first."""
        return min(list(self._seconds.values()), default=None)
