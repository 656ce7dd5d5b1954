"""The slot table against a plain model of it, with random arrivals and removals."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.schedule import StepPlan
from service.worker.scheduler import Row, SlotTable

PLAN = StepPlan(guidance_scale=0.0, temperature=1.0, noise_temperature=0.0, mask_count=0)


def rows(task_id: str, count: int, steps: int = 2) -> list[Row]:
    return [
        Row(
            label=0,
            seed=k,
            plans=(PLAN,) * steps,
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


def test_removing_a_task_frees_its_slots_and_ends_its_privilege() -> None:
    table = SlotTable(2)
    table.add(rows("suspect", 3), solo=True)
    table.admit()
    assert len(table.remove("suspect")) == 3
    assert table.free == 2
    assert table.remove("suspect") == []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4), st.booleans(), st.booleans()), max_size=30))
def test_no_row_is_lost_doubled_or_over_the_slots(
    events: list[tuple[int, int, bool, bool]],
) -> None:
    table = SlotTable(3)
    known: dict[str, int] = {}
    done = removed = 0
    for number, (victim, count, solo, remove) in enumerate(events):
        table.add(rows(f"t{number}", count, steps=1 + number % 3), solo=solo)
        known[f"t{number}"] = count
        if remove:
            removed += len(table.remove(f"t{victim}"))
        active = table.admit()
        assert len(active) <= 3
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
