"""How the shards of a data set are divided among processes and their loaders, and the order each reads in.

A lane is the share of one loader process in one part of the data. In an epoch no two lanes read the same
sample and together they read all: shards, permuted by (seed, epoch), are dealt to the lanes in turn, or,
where there are fewer shards than lanes, the samples of every shard. Lanes end their epochs independently.

Within a lane, blocks of `shuffle_buffer_size` samples are shuffled, each as a whole. So a position in the
stream is the place of the block's first sample and a count, and to resume there costs reading two blocks.
"""

from __future__ import annotations

import posixpath
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from models.errors import ConfigError
from training.data.sample import Sample, Shard

SHARDS, BLOCK, CROP = range(3)  # one kind of randomness each
EMPTY_EPOCHS = 100

Position = list[int]  # epoch, shard and sample where the block begins; samples of the block that are done


class Place(NamedTuple):
    """Where a sample stands in a lane: the epoch, its shard as a count in that epoch, its index there."""

    epoch: int
    shard: int
    sample: int


class Entry(NamedTuple):
    """A sample and where it stands."""

    place: Place
    sample: Sample


@dataclass(frozen=True)
class Layout:
    """Division of `shards` into `parts` x `workers` lanes, shuffled in blocks of `buffer` samples."""

    shards: Sequence[Shard]
    seed: int
    buffer: int
    parts: int
    workers: int

    def key(self, part: int, worker: int) -> str:
        """Name of a lane in positions; it differs where a position would mean another sample."""
        names = [posixpath.basename(shard.name) for shard in self.shards]  # the folder may have moved
        content = repr((self.seed, self.buffer, names))
        digest = zlib.crc32(content.encode())
        return f"part {part}/{self.parts} worker {worker}/{self.workers} data {digest:08x}"

    def lane(self, part: int, worker: int, position: Position) -> Lane:
        """A lane from `position` on."""
        return Lane(self, part * self.workers + worker, position)

    def epoch_shards(self, lane: int, epoch: int) -> list[Shard]:
        """The shards that a lane reads in an epoch, in order."""
        order = np.random.default_rng([self.seed, SHARDS, epoch]).permutation(len(self.shards))
        if self.by_shard:
            # Turning with the epoch keeps lanes in step where the shards do not divide evenly.
            order = order[(lane + epoch) % self.lanes :: self.lanes]
        return [self.shards[i] for i in order]

    @property
    def lanes(self) -> int:
        """Their number."""
        return self.parts * self.workers

    @property
    def by_shard(self) -> bool:
        """Whether whole shards are dealt to lanes, rather than the samples of each."""
        return len(self.shards) >= self.lanes


class Lane:
    """Endless shuffled samples of one lane; `position` is where it stands after what it gave last."""

    def __init__(self, layout: Layout, number: int, position: Position) -> None:
        self.layout = layout
        self.number = number
        self.position = position
        self._entries = self._shuffled()

    def __iter__(self) -> Iterator[Entry]:
        return self

    def __next__(self) -> Entry:
        return next(self._entries)

    def random(self, place: Place) -> np.random.Generator:
        """The randomness with which the picture at `place` is cropped."""
        return np.random.default_rng([self.layout.seed, CROP, self.number, *place])

    def _shuffled(self) -> Iterator[Entry]:
        *place, done = self.position
        source = _Lookahead(self._in_order(Place(*place)))
        block = self._fill([], source)
        while True:
            first = block[0].place
            order = np.random.default_rng([self.layout.seed, BLOCK, self.number, *first]).permutation(
                len(block)
            )
            block = [block[i] for i in order]
            following: list[Entry] = []
            for emitted in range(1, len(block) + 1):
                entry = block.pop()
                self._add(following, source)
                if emitted > done:
                    self.position = [*first, emitted]
                    yield entry
            done = 0
            block = self._fill(following, source)

    def _fill(self, block: list[Entry], source: _Lookahead) -> list[Entry]:
        while self._add(block, source):
            pass
        return block

    def _add(self, block: list[Entry], source: _Lookahead) -> bool:
        """Move one sample to `block` unless it is full or the next one belongs to another epoch."""
        if len(block) == self.layout.buffer or (block and block[0].place.epoch != source.ahead.place.epoch):
            return False
        block.append(source.take())
        return True

    def _in_order(self, start: Place) -> Iterator[Entry]:
        """Samples as the shards hold them, from `start` on."""
        empty = 0
        for epoch in count(start.epoch):
            found = False
            shards = self.layout.epoch_shards(self.number, epoch)
            for number in range(start.shard if epoch == start.epoch else 0, len(shards)):
                index = start.sample if (epoch, number) == start[:2] else 0
                for sample in self._share(shards[number], epoch + number, index):
                    found = True
                    yield Entry(Place(epoch, number, sample.index), sample)
            empty = 0 if found else empty + 1
            if empty == EMPTY_EPOCHS:
                raise ConfigError(f"{self.layout.shards[0].name}: no samples in this or the other shards")

    def _share(self, shard: Shard, turn: int, start: int) -> Iterator[Sample]:
        """This lane's samples of `shard`, from index `start` on."""
        if self.layout.by_shard:
            return shard.read(start)
        lanes = self.layout.lanes
        return shard.read(start + (self.number - turn - start) % lanes, lanes)


class _Lookahead:
    """An endless iterator whose next item can be seen before it is taken."""

    def __init__(self, entries: Iterator[Entry]) -> None:
        self._entries = entries
        self._ahead: Entry | None = None

    @property
    def ahead(self) -> Entry:
        if self._ahead is None:
            self._ahead = next(self._entries)
        return self._ahead

    def take(self) -> Entry:
        entry, self._ahead = self.ahead, None
        return entry


def starting_positions(keys: Sequence[str], stored: Mapping[str, Any]) -> tuple[dict[str, Position], bool]:
    """Position of each of the lanes `keys`, and whether they are those of the `stored` ones.

    Lanes that are divided otherwise than the stored ones start at the epoch after the last that was begun.
    """
    if all(key in stored for key in keys):
        return {key: list(stored[key]) for key in keys}, True
    epoch = 1 + max((position[0] for position in stored.values()), default=-1)
    return {key: [epoch, 0, 0, 0] for key in keys}, not stored
