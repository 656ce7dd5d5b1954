"""Quantities of `maskbit plan`, as they are typed and as they are in files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ConfigError, InputError
from service.plan import part_costs, step_times, units
from service.plan.measured import FRUIT, PARTS


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (units.per_second, "50/s", 50.0),
        (units.per_second, "3000/min", 50.0),
        (units.per_second, "9000/h", 2.5),
        (units.seconds, "2s", 2.0),
        (units.seconds, "800ms", 0.8),
        (units.seconds, ".5s", 0.5),
        (units.seconds, "150us", 0.00015),
        (units.seconds, "1.5min", 90.0),
        (units.byte_count, "90kB", 90_000.0),
        (units.bits_per_second, "10Gbit/s", 1e10),
    ],
)
def test_quantities_are_read_with_their_units(
    read: Callable[[str, str], float], text: str, value: float
) -> None:
    assert read("--it", text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (units.per_second, "50"),
        (units.per_second, "50 /s"),
        (units.per_second, "0/s"),
        (units.per_second, "-1/s"),
        (units.per_second, "1e3/s"),
        (units.per_second, "50/S"),
        (units.per_second, "nan/s"),
        (units.per_second, "50s"),
        (units.seconds, "2"),
        (units.seconds, "2 s 3"),
        (units.seconds, "2h"),
        (units.seconds, "5/s"),
        (units.seconds, ""),
        (units.seconds, "٣s"),
        (units.seconds, "9" * 400 + "s"),
        (units.byte_count, "90KB"),
        (units.bits_per_second, "10GB/s"),
    ],
)
def test_anything_else_is_refused_with_what_is_allowed(read: Callable[[str, str], float], text: str) -> None:
    with pytest.raises(InputError, match=r"^--it is .*(such as|above 0)"):
        read("--it", text)


@given(st.dictionaries(st.integers(1, 4096), st.integers(1, 10_000), min_size=1))
def test_times_by_size_are_read_back_in_order(known: dict[int, int]) -> None:
    # A larger size takes at least as long.
    times = dict(zip(sorted(known), sorted(known.values()), strict=True))
    text = ",".join(f"{size}:{times[size]}ms" for size in known)
    found = units.seconds_by_size("--it", text)
    assert list(found) == sorted(known)
    assert found == pytest.approx({size: ms / 1000 for size, ms in times.items()})


@pytest.mark.parametrize(
    "text", ["", "2", "2:", ":2ms", "0:2ms", "x:2ms", "2:2", "2:1ms,2:1ms", "2:1ms,,4:1ms", "4:1ms,2:2ms"]
)
def test_a_list_of_times_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^--it is "):
        units.seconds_by_size("--it", text)


def test_files_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    FRUIT.save(path)
    assert step_times.load(path) == replace(FRUIT, source=str(path))
    PARTS.save(path)
    assert part_costs.load(path) == replace(PARTS, source=str(path))


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"step_s": {}},
        {"step_s": {"2": 0}},
        {"step_s": {"two": 0.1}},
        {"step_s": 7},
        {"decode_s": {"1": "fast"}},
        {"buckets": [4, 2]},
        {"buckets": [0]},
        {"slots": 0},
        {"hardware": 7},
        {"sampling": {"steps": 0}},
        {"sampling": None},
        {"surprise": 1},
        {"file_s": -1.0},
    ],
)
def test_a_file_that_says_something_else_is_refused_by_name(
    tmp_path: Path, change: dict[str, object]
) -> None:
    path = tmp_path / "numbers.json"
    FRUIT.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=r"numbers\.json is no file of maskbit bench steps: [^\n]+$"):
        step_times.load(path)
    with pytest.raises(InputError, match=r"is no file of maskbit bench parts: [^\n]+$"):
        part_costs.load(path)


@pytest.mark.parametrize("text", ["[1, 2]", "7", "{", ""])
def test_a_file_that_is_no_object_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "numbers.json"
    path.write_text(text)
    for load, what in ((step_times.load, "steps"), (part_costs.load, "parts")):
        with pytest.raises(InputError, match=rf"numbers\.json is no file of maskbit bench {what}: [^\n]+$"):
            load(path)


def test_a_file_that_is_not_there_or_no_json_is_refused_by_name(tmp_path: Path) -> None:
    for load in (step_times.load, part_costs.load):
        with pytest.raises(InputError, match=r"missing\.json cannot be read: No such file"):
            load(tmp_path / "missing.json")
        (tmp_path / "broken.json").write_text("{")
        with pytest.raises(InputError, match=r"broken\.json is no file of"):
            load(tmp_path / "broken.json")


def test_a_cost_below_zero_is_none() -> None:
    with pytest.raises(ConfigError, match="request_redis_s is -1"):
        replace(PARTS, request_redis_s=-1.0)


def test_a_call_costs_what_its_padded_size_costs() -> None:
    times = replace(FRUIT, buckets=(1, 2, 4, 8), step_s={1: 0.01, 2: 0.02, 4: 0.03, 8: 0.05})
    assert [times.step(rows) for rows in (1, 2, 3, 4, 5, 8)] == [0.01, 0.02, 0.03, 0.03, 0.05, 0.05]
    # Two calls, and the rest of a third.
    assert times.step(17) == pytest.approx(0.05 + 0.05 + 0.01)


def test_between_two_measured_sizes_time_grows_in_a_straight_line() -> None:
    times = replace(FRUIT, buckets=(1, 2, 4, 8, 16), step_s={2: 0.02, 8: 0.05})
    assert times.step(4) == pytest.approx(0.03)
    assert times.step(1) == 0.02
    assert times.step(16) == pytest.approx(0.1)


@given(st.integers(1, 100), st.integers(1, 100))
def test_more_rows_never_take_less_time(one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert FRUIT.step(low) <= FRUIT.step(high) + 1e-12
