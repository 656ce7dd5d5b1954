from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice, takewhile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ConfigError
from training.data.lanes import Entry, Lane, Layout, Position, starting_positions
from training.data.sample import Sample

START: Position = [0, 0, 0, 0]


@dataclass(frozen=True)
class ListShard:
    """`size` samples whose keys name shard and index."""

    name: str
    size: int

    def read(self, start: int = 0, step: int = 1) -> Iterator[Sample]:
        for index in range(start, self.size, step):
            yield Sample(self.name, index, f"{self.name} {index}", b"", 0)


def layout(sizes: list[int], parts: int = 1, workers: int = 1, buffer: int = 5, seed: int = 3) -> Layout:
    shards = [ListShard(f"s{number}", size) for number, size in enumerate(sizes)]
    return Layout(shards, seed, buffer, parts, workers)


def lanes_of(plan: Layout) -> list[Lane]:
    return [plan.lane(part, worker, START) for part in range(plan.parts) for worker in range(plan.workers)]


def epoch_of(lane: Lane, epoch: int) -> list[str]:
    """Keys of the samples of one epoch."""
    entries = takewhile(lambda entry: entry.place.epoch <= epoch, lane)
    return [entry.sample.key for entry in entries if entry.place.epoch == epoch]


def steps(lane: Lane, number: int) -> list[tuple[Entry, Position]]:
    return [(entry, lane.position) for entry in islice(lane, number)]


sizes = st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(sum)


@given(sizes, st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(0, 3))
def test_in_an_epoch_all_lanes_together_see_every_sample_once(
    sizes: list[int], parts: int, workers: int, buffer: int, epoch: int
) -> None:
    plan = layout(sizes, parts, workers, buffer)
    seen: Counter[str] = Counter()
    for number in range(plan.lanes):
        for shard_number, shard in enumerate(plan.epoch_shards(number, epoch)):
            lane = Lane(plan, number, START)
            seen.update(sample.key for sample in lane._share(shard, epoch + shard_number, 0))
    assert seen == Counter(f"s{n} {index}" for n, size in enumerate(sizes) for index in range(size))


@pytest.mark.parametrize("sizes", [[40], [7, 9, 30], [6] * 11])
@pytest.mark.parametrize("workers", [1, 2])
def test_lanes_of_two_parts_share_the_samples_out_epoch_by_epoch(sizes: list[int], workers: int) -> None:
    lanes = lanes_of(layout(sizes, 2, workers))
    for epoch in range(2):
        keys = [epoch_of(Lane(lane.layout, lane.number, START), epoch) for lane in lanes]
        everything = [key for part in keys for key in part]
        assert len(everything) == len(set(everything)) == sum(sizes)
        assert all(keys)


@given(sizes, st.integers(1, 3), st.integers(1, 9), st.integers(0, 60), st.data())
def test_a_lane_resumed_anywhere_goes_on_as_if_it_had_never_stopped(
    sizes: list[int], lanes: int, buffer: int, done: int, data: st.DataObject
) -> None:
    plan = layout([*sizes, lanes], lanes, 1, buffer)
    number = data.draw(st.integers(0, lanes - 1))
    whole = steps(Lane(plan, number, START), done + 30)
    position = json.loads(json.dumps(whole[done - 1][1])) if done else START
    assert steps(Lane(plan, number, position), 30) == whole[done:]


@dataclass(frozen=True)
class CountingShard(ListShard):
    """Remembers how many samples were read."""

    reads: Counter[str]

    def read(self, start: int = 0, step: int = 1) -> Iterator[Sample]:
        for sample in super().read(start, step):
            self.reads[self.name] += 1
            yield sample


def test_a_resume_reads_no_more_than_two_blocks_again() -> None:
    reads: Counter[str] = Counter()
    plan = Layout([CountingShard(f"s{n}", 1000, reads) for n in range(20)], 0, 50, 1, 1)
    lane = plan.lane(0, 0, START)
    list(islice(lane, 12_345))
    position = lane.position
    reads.clear()
    next(plan.lane(0, 0, position))
    assert reads.total() <= 2 * 50 + 1


def test_a_lane_never_holds_more_than_its_buffer() -> None:
    reads: Counter[str] = Counter()
    plan = Layout([CountingShard("s", 1000, reads)], 0, 50, 1, 1)
    for given_out, _ in enumerate(islice(plan.lane(0, 0, START), 500), start=1):
        assert reads.total() - given_out <= 50 + 1  # one is looked ahead


def test_samples_are_mixed_across_a_buffer_and_anew_in_each_epoch() -> None:
    plan = layout([100] * 4, buffer=60)
    epochs = [epoch_of(plan.lane(0, 0, START), epoch) for epoch in range(2)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1])
    order = [plan.shards[0].read, *(shard.read for shard in plan.epoch_shards(0, 0))][1:]
    place = {sample.key: n for n, sample in enumerate(s for read in order for s in read())}
    moved = np.abs([place[key] - n for n, key in enumerate(epochs[0])])
    assert moved.max() < 60
    assert moved.mean() > 15  # a third of the buffer is expected


def test_epochs_of_lanes_do_not_drift_apart_where_shards_do_not_divide_evenly() -> None:
    lanes = lanes_of(layout([10] * 5, parts=4))
    epochs = [list(islice(lane, 2000))[-1].place.epoch for lane in lanes]
    assert max(epochs) - min(epochs) <= 1


def test_every_place_has_a_randomness_of_its_own() -> None:
    lanes = lanes_of(layout([20] * 3, parts=2))
    draws = [lane.random(entry.place).random() for lane in lanes for entry in islice(lane, 100)]
    assert len(set(draws)) == 200
    again = lanes_of(layout([20] * 3, parts=2))
    assert draws == [lane.random(entry.place).random() for lane in again for entry in islice(lane, 100)]


def test_shards_without_samples_end_in_an_error() -> None:
    with pytest.raises(ConfigError, match="s0: no samples in this or the other shards"):
        next(layout([0, 0], parts=1).lane(0, 0, START))
    with pytest.raises(ConfigError, match="no samples"):
        next(layout([0], parts=3).lane(2, 0, START))


def test_one_sample_serves_many_lanes_in_turn() -> None:
    for lane in lanes_of(layout([1], parts=3)):
        epochs = [entry.place.epoch for entry in islice(lane, 4)]
        assert np.diff(epochs).tolist() == [3, 3, 3]


def test_names_of_lanes_differ_where_positions_mean_something_else() -> None:
    plans = [
        layout([3, 4]),
        layout([3, 4], parts=2),
        layout([3, 4], workers=2),
        layout([3, 4], seed=4),
        layout([3, 4], buffer=6),
        layout([3, 4, 5]),
    ]
    assert len({plan.key(0, 0) for plan in plans}) == len(plans)
    moved = Layout([ListShard(f"/elsewhere/s{n}", size) for n, size in enumerate((3, 4))], 3, 5, 1, 1)
    assert moved.key(0, 0) == plans[0].key(0, 0)


def test_stored_positions_serve_lanes_of_the_same_division_only() -> None:
    stored = {"a": [2, 1, 0, 5], "b": [4, 0, 0, 1]}
    assert starting_positions(["b"], stored) == ({"b": [4, 0, 0, 1]}, True)
    assert starting_positions(["a", "c"], stored) == ({"a": [5, 0, 0, 0], "c": [5, 0, 0, 0]}, False)
    assert starting_positions(["a"], {}) == ({"a": START}, True)


def test_a_lane_that_goes_on_for_long_stays_endless() -> None:
    numbers = zip(count(1), layout([2]).lane(0, 0, START), strict=False)
    assert max(number for number, _ in islice(numbers, 500)) == 500
