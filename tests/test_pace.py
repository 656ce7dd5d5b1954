"""The record of network calls behind the forecasts."""

from hypothesis import given, settings
from hypothesis import strategies as st

from service.worker.pace import Pace


def test_nothing_is_claimed_before_a_large_call_was_measured() -> None:
    pace = Pace(32)
    assert (pace.per_s, pace.call_s) == (None, None)
    pace.note(16, 0.1)
    assert (pace.per_s, pace.call_s) == (None, 0.1)
    pace.note(24, 0.2)
    assert (pace.per_s, pace.call_s) == (24 / 0.2, 0.1)


def test_the_best_size_counts() -> None:
    pace = Pace(32)
    pace.note(24, 0.2)
    pace.note(32, 0.2)
    assert pace.per_s == 160


def test_a_slow_call_hardly_counts_and_lasting_slowness_does() -> None:
    pace = Pace(10)
    pace.note(10, 1.0)
    pace.note(10, 21.0)
    assert pace.call_s == 2.0
    for _ in range(200):
        pace.note(10, 3.0)
    assert pace.call_s is not None
    assert 2.99 < pace.call_s <= 3.0


def test_a_slowness_that_turned_all_work_away_is_forgotten_size_by_size() -> None:
    now = [0.0]
    pace = Pace(32, lambda: now[0])
    pace.note(32, 30.0)
    pace.note(2, 1.0)
    now[0] = 50.0
    pace.note(2, 1.0)
    assert (pace.per_s, pace.call_s) == (32 / 30.0, 1.0)
    now[0] = 61.0
    assert (pace.per_s, pace.call_s) == (None, 1.0)
    now[0] = 111.0
    assert (pace.per_s, pace.call_s) == (None, None)
    pace.note(32, 40.0)
    assert pace.call_s == 40.0


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0, 10)), min_size=1, max_size=50))
def test_the_shortest_call_is_never_overestimated_beyond_the_slowest_of_its_size(
    calls: list[tuple[int, float]],
) -> None:
    pace = Pace(64)
    for size, seconds in calls:
        pace.note(size, seconds)
    slowest = {size: max(s for one, s in calls if one == size) for size, _ in calls}
    assert pace.call_s is not None
    assert 0 < pace.call_s <= max(min(slowest.values()), 1e-6)
