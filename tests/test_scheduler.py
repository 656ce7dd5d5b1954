"""The slot table against a plain model of it, with random arrivals and removals."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.schedule import StepPlan
from service.worker.scheduler import Row, Shares, SlotTable, Work

PLAN = StepPlan(guidance_scale=0.0, temperature=1.0, noise_temperature=0.0, mask_count=0)
GUIDED = StepPlan(guidance_scale=3.0, temperature=1.0, noise_temperature=0.0, mask_count=0)


def rows(task_id: str, count: int, steps: int = 2, plans: Sequence[StepPlan] = ()) -> list[Row]:
    return [
        Row(
            label=0,
            seed=k,
            plans=plans or (GUIDED,) * steps,
            tokens=np.zeros((4, 2), dtype=np.int64),
            task_id=task_id,
            image=k,
        )
        for k in range(count)
    ]


def test_rows_are_admitted_in_order_of_arrival_up_to_the_slots() -> None:
    table = SlotTable(4)
    table.add(rows("a", 3))
    table.add(rows("b", 3))
    active = [(row.task_id, row.image) for row in table.admit()]
    assert active == [("a", 0), ("a", 1), ("a", 2), ("b", 0)]
    assert table.free == 0
    assert [row.image for row in table.waiting] == [1, 2]


def test_a_slot_is_taken_again_before_the_other_pictures_have_ended() -> None:
    table = SlotTable(2)
    table.add(rows("short", 1, steps=1))
    table.add(rows("long", 1, steps=9))
    table.add(rows("next", 1))
    for row in table.admit():
        row.step += 1
    assert [row.task_id for row in table.take_finished()] == ["short"]
    assert [row.task_id for row in table.admit()] == ["long", "next"]


def test_a_solo_task_shares_the_table_with_nobody() -> None:
    table = SlotTable(4)
    table.add(rows("first", 1, steps=1))
    table.add(rows("suspect", 2, steps=1), solo=True)
    table.add(rows("later", 1))
    assert {row.task_id for row in table.admit()} == {"first"}
    assert table.free == 0
    for expected in ({"suspect"}, {"later"}):
        for row in table.active:
            row.step += 1
        table.take_finished()
        assert {row.task_id for row in table.admit()} == expected
    assert table.free == 3


def test_a_picture_takes_a_slot_as_long_as_guidance_is_before_it_and_half_a_one_later() -> None:
    [row] = rows("a", 1, plans=(PLAN, GUIDED, PLAN, PLAN))
    table = SlotTable(4)
    table.add([row])
    seen = []
    while not row.finished:
        table.admit()
        seen.append((row.room, row.cost, row.cost_left, table.taken, table.free))
        row.step += 1
    assert seen == [(2, 1, 5, 1.0, 3), (2, 2, 4, 1.0, 3), (1, 1, 2, 0.5, 3), (1, 1, 1, 0.5, 3)]


def test_twice_as_many_pictures_fit_without_guidance() -> None:
    table = SlotTable(2)
    table.add(rows("plain", 3, plans=(PLAN, PLAN)))
    assert table.free == 0
    table.add(rows("guided", 1))
    table.add(rows("plain too", 1, plans=(PLAN,)))
    assert [row.task_id for row in table.admit()] == ["plain"] * 3
    # Nobody overtakes a picture that waits for room.
    assert [row.task_id for row in table.waiting] == ["guided", "plain too"]


def test_removing_a_task_frees_its_slots_and_ends_its_privilege() -> None:
    table = SlotTable(2)
    table.add(rows("suspect", 3), solo=True)
    table.admit()
    assert len(table.remove("suspect")) == 3
    assert table.free == 2
    assert table.remove("suspect") == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4), st.booleans(), st.booleans()), max_size=30),
    st.lists(st.lists(st.sampled_from([PLAN, GUIDED]), min_size=1, max_size=4), min_size=1, max_size=5),
)
def test_no_row_is_lost_doubled_or_over_the_slots(
    events: list[tuple[int, int, bool, bool]], plans: list[list[StepPlan]]
) -> None:
    table = SlotTable(3)
    known: dict[str, int] = {}
    done = removed = 0
    for number, (victim, count, solo, remove) in enumerate(events):
        table.add(rows(f"t{number}", count, plans=plans[number % len(plans)]), solo=solo)
        known[f"t{number}"] = count
        if remove:
            removed += len(table.remove(f"t{victim}"))
        active = table.admit()
        assert sum(row.cost for row in active) <= sum(row.room for row in active) <= 6
        assert len({(row.task_id, row.image) for row in active}) == len(active)
        for row in active:
            row.step += 1
        done += len(table.take_finished())
    for _ in range(10 * len(events) + 10):
        for row in table.admit():
            row.step += 1
        done += len(table.take_finished())
    assert done + removed == sum(known.values())
    assert table.free == 3


def test_coding_goes_first_when_both_are_level_and_whoever_is_alone_goes_on() -> None:
    shares = Shares()
    assert shares.choose(drawing=False, coding=False) is None
    assert shares.choose(drawing=True, coding=True) == "coding"
    for _ in range(9):
        assert shares.choose(drawing=True, coding=False) == "drawing"
        shares.charge("drawing", 5.0)


def test_a_rest_is_not_saved_up() -> None:
    shares = Shares()
    for _ in range(50):
        assert shares.choose(drawing=True, coding=False) == "drawing"
        shares.charge("drawing", 1.0)
    turns = []
    for _ in range(6):
        work = shares.choose(drawing=True, coding=True)
        assert work is not None
        shares.charge(work, 1.0)
        turns.append(work)
    assert turns == ["coding", "drawing"] * 3


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40),
    st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), min_size=1, max_size=40),
)
def test_both_get_their_half_of_any_time_in_which_both_have_work(
    before: list[tuple[bool, bool]], costs: list[tuple[float, float]]
) -> None:
    shares = Shares()
    largest = max(max(pair) for pair in costs)

    def one_round(drawing: bool, coding: bool, number: int) -> tuple[Work | None, float]:
        work = shares.choose(drawing=drawing, coding=coding)
        cost = costs[number % len(costs)][work == "coding"]
        if work:
            shares.charge(work, cost)
        return work, cost

    for number, (drawing, coding) in enumerate(before):
        one_round(drawing, coding, number)
    used = {"drawing": 0.0, "coding": 0.0}
    for number in range(100):
        work, cost = one_round(True, True, number)
        assert work is not None
        used[work] += cost
        assert abs(used["drawing"] - used["coding"]) <= 2 * largest + 1e-6
