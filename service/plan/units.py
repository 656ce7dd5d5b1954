"""Quantities with their units, as they are typed: 50/s, 2s, 10Gbit/s; a number alone is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from models.errors import InputError

_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)([A-Za-z/]+)")
_RATES = {"/s": 1.0, "/min": 1 / 60, "/h": 1 / 3600}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6}
_BYTES_S = {"MB/s": 1e6, "GB/s": 1e9}
_BITS = {"Mbit/s": 1e6, "Gbit/s": 1e9}


def per_second(option: str, text: str) -> float:
    """A rate such as 50/s, 3000/min or 9000/h, in 1/s. Raises InputError, also for 0."""
    return _quantity(option, text, _RATES, "50/s, 3000/min or 9000/h")


def seconds(option: str, text: str) -> float:
    """A time such as 2s, 800ms, 150us or 1min, in s. Raises InputError, also for 0."""
    return _quantity(option, text, _SECONDS, "2s, 800ms, 150us or 1min")


def byte_count(option: str, text: str) -> float:
    """A size such as 90kB, in bytes; k is 1000. Raises InputError, also for 0."""
    return _quantity(option, text, _BYTES, "900B, 90kB or 1.5MB")


def bytes_per_second(option: str, text: str) -> float:
    """The speed of a disk such as 125MB/s, in bytes/s. Raises InputError, also for 0."""
    return _quantity(option, text, _BYTES_S, "125MB/s or 1GB/s")


def bits_per_second(option: str, text: str) -> float:
    """The speed of a network such as 10Gbit/s, in bit/s. Raises InputError, also for 0."""
    return _quantity(option, text, _BITS, "10Gbit/s or 800Mbit/s")


def seconds_by_size(option: str, text: str) -> dict[int, float]:
    """Times by a number of rows or pictures, such as 2:12ms,32:55ms, that do not fall. Raises InputError."""
    found: dict[int, float] = {}
    for part in text.split(","):
        size, colon, time = part.strip().partition(":")
        if not (colon and size.isascii() and size.isdecimal() and int(size)):
            raise InputError(f"{option} is {text!r}; it is a list of sizes and times: 2:12ms,32:55ms")
        if int(size) in found:
            raise InputError(f"{option} is {text!r}; it names the size {size} twice")
        found[int(size)] = seconds(option, time)
    times = dict(sorted(found.items()))
    if list(times.values()) != sorted(times.values()):
        raise InputError(f"{option} is {text!r}; a larger size takes at least as long as a smaller one")
    return times


def _quantity(option: str, text: str, units: Mapping[str, float], examples: str) -> float:
    match = _NUMBER.fullmatch(text.strip())
    if match is None or match[2] not in units:
        raise InputError(f"{option} is {text!r}; it is a number with a unit, such as {examples}")
    value = float(match[1]) * units[match[2]]
    if not 0 < value < math.inf:
        raise InputError(f"{option} is {text!r}; it must be above 0")
    return value
