"""The table that `maskbit export verify` prints, a line for each runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping

from models.verification import EQUAL_DB, Numbers, RuntimeVerdict

_TITLES = ("bits", "picture", "same step", "drawn", "own way", "log odds", "encode", "decode", "step")
_WIDTHS = (11, 9, 11, 11, 11, 10, 8, 8, 8)


def _line(name: str, cells: tuple[str, ...], verdict: str) -> str:
    columns = "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))
    return f"{name:<20}{columns}  {verdict}".rstrip()


HEADER = (
    f"{'':20}{'agreement with torch fp32':>{sum(_WIDTHS[:6])}}{'ms a picture':>{sum(_WIDTHS[6:])}}",
    _line("", _TITLES, ""),
)


def reference_line(device: str, times: Mapping[str, float]) -> str:
    """Of torch fp32 itself, whose times the others' stand below."""
    taken = tuple(_ms(times.get(f"{name}_ms")) for name in ("encode", "decode", "step"))
    return _line(f"torch fp32 {device}", ("",) * 6 + taken, "reference")


def line_of(one: RuntimeVerdict) -> str:
    """The numbers of a runtime and what is wrong with them, or why it was not measured."""
    verdict = one.verdict if one.reason is None else f"{one.verdict}: {one.reason}"
    cells = ("",) * len(_WIDTHS) if one.numbers is None else _cells(one.numbers)
    return _line(f"{one.name} {one.device or ''}", cells, verdict)


def _cells(numbers: Numbers) -> tuple[str, ...]:
    equal = numbers.decode_psnr_db >= EQUAL_DB
    return (
        _percent(numbers.encode_bits),
        "equal" if equal else f"{numbers.decode_psnr_db:.1f} dB",
        _percent(numbers.step_tokens),
        _percent(numbers.step_drawn),
        _percent(numbers.trace_tokens),
        "" if numbers.logit_error is None else f"{numbers.logit_error:.1e}",
        _ms(numbers.encode_ms),
        _ms(numbers.decode_ms),
        _ms(numbers.step_ms),
    )


def _percent(share: float | None) -> str:
    """Rounded down, so that 100 % means all."""
    return "" if share is None else f"{math.floor(share * 1e5) / 1e3:.3f} %"


def _ms(time: float | None) -> str:
    return "" if time is None else f"{time:.2f}"
