"""A process whose engine hangs ends; one that is idle, slow or waits for a server does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from service.worker.stall import CALLS, FACTOR, FLOOR_S, STALLED, StallWatch


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        self.ended: list[int] = []
        monkeypatch.setattr("service.worker.stall.time.monotonic", lambda: self.now_s)
        monkeypatch.setattr("service.worker.stall.os._exit", self.ended.append)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def engine(**values: Any) -> Any:
    return SimpleNamespace(**{"turns": 7, "idle": False, "longest_turn_s": 0.1, **values})


@pytest.mark.parametrize(
    ("longest_turn_s", "call_limit_s", "limit_s"),
    [(0.1, 0.0, FLOOR_S), (30.0, 0.0, FACTOR * 30.0), (0.1, 75.0, FLOOR_S + CALLS * 75.0)],
)
def test_a_turn_hangs_after_the_floor_or_five_of_the_longest_or_all_calls_to_a_server(
    clock: Clock, longest_turn_s: float, call_limit_s: float, limit_s: float
) -> None:
    watch = StallWatch(engine(longest_turn_s=longest_turn_s), call_limit_s)
    watch.look()
    clock.now_s += limit_s
    watch.look()
    assert clock.ended == []
    clock.now_s += 0.1
    watch.look()
    assert clock.ended == [STALLED]


def test_an_engine_that_is_idle_or_goes_on_does_not_hang(clock: Clock) -> None:
    one = engine(idle=True)
    watch = StallWatch(one, 0.0)
    for _ in range(3):
        clock.now_s += 10 * FLOOR_S
        watch.look()
    one.idle = False
    for _ in range(3):
        clock.now_s += FLOOR_S - 1
        one.turns += 1
        watch.look()
    assert clock.ended == []
