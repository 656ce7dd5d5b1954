"""Addresses that try wrong keys: ten a minute are borne with."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict, deque
from collections.abc import Callable

ALLOWED = 10
WINDOW_S = 60.0
MAX_ADDRESSES = 4096
_IPV6_HOME = 64


class FailedKeys:
    """The last failures of each address, in the memory of one process; of the latest addresses only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Seconds until `address` may fail again, 0 when it may now."""
        times = self._failures.get(_home(address))
        if times is None or len(times) < ALLOWED:
            return 0.0
        return max(0.0, times[0] + WINDOW_S - self._clock())

    def add(self, address: str) -> None:
        """A wrong key came from `address`."""
        home = _home(address)
        times = self._failures.setdefault(home, deque(maxlen=ALLOWED))
        times.append(self._clock())
        self._failures.move_to_end(home)
        if len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)


def _home(address: str) -> str:
    """What one client has: an IPv4 address, or the IPv6 network that is given out as a whole."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, _IPV6_HOME), strict=False))
    return str(parsed)
