"""Draw many pictures and keep what measures need of them, in a run that can be stopped and continued."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models.drawing import draw, generator_of
from models.noise import check_seed
from models.sampling_config import SamplingConfig
from models.validation import require_positive
from training.evaluation.drawing_folder import BlockState, DrawingFolder, save_grid
from training.evaluation.feature_sample import FeatureSample
from training.evaluation.observer import FAKE, Observer, from_pixels, gathered_sample
from training.evaluation.progress import PictureBar
from training.evaluation.setup import Setup
from training.evaluation.tally import Tally
from training.picture_grid import picture_grid

GRID_COLUMNS, GRID_PICTURES = 8, 64


@dataclass(frozen=True)
class DrawingPlan:
    """Picture k of `pictures` has the seed `seed` + k and the class k modulo the number of classes.

    The state is saved after `save_every` pictures or fewer.
    """

    sampling: SamplingConfig
    pictures: int = 50_000
    seed: int = 0
    save_every: int = 1000

    def __post_init__(self) -> None:
        require_positive(self, "pictures", "save_every")
        check_seed(self.seed)
        check_seed(self.seed + self.pictures - 1)


class Chunk(NamedTuple):
    """Pictures `start` to `stop` - 1, which belong to `block`."""

    number: int
    block: int
    start: int
    stop: int


def chunks_of(plan: DrawingPlan, blocks: int) -> list[Chunk]:
    """All chunks in order: equally long but for the last, equally many for every block where possible."""
    rounds = math.ceil(plan.pictures / (blocks * plan.save_every))
    length = math.ceil(plan.pictures / (blocks * rounds))
    starts = range(0, plan.pictures, length)
    return [
        Chunk(number, number % blocks, start, min(start + length, plan.pictures))
        for number, start in enumerate(starts)
    ]


def deal(missing: Sequence[int], hands: int) -> list[list[int]]:
    """Blocks, of which each lacks `missing` pictures, dealt to processes so that all draw about as many.

    The largest comes first, to whoever has the fewest pictures so far, and then the fewest blocks.
    """
    dealt: list[list[int]] = [[] for _ in range(hands)]
    loads = [0] * hands
    for block in sorted(range(len(missing)), key=lambda block: -missing[block]):
        hand = min(range(hands), key=lambda hand: (loads[hand], len(dealt[hand])))
        dealt[hand].append(block)
        loads[hand] += missing[block]
    return [sorted(hand) for hand in dealt]


class DrawingRun:
    """This process's share of the pictures: whole blocks, whose sums are the same whoever draws them."""

    def __init__(self, setup: Setup, plan: DrawingPlan, folder: DrawingFolder | None) -> None:
        self._setup = setup
        self._plan = plan
        self._folder = folder
        ranks, settings = setup.ranks, setup.settings
        chunks = chunks_of(plan, settings.blocks)
        own = deal(self._missing(chunks), ranks.count)[ranks.rank]
        self._own = [chunk for chunk in chunks if chunk.block in own]
        self._states = {block: self._state(block) for block in sorted({chunk.block for chunk in self._own})}

    def finish(self) -> tuple[Tally, FeatureSample]:
        """Draw what is missing; then sums and sample of the pictures of all processes."""
        left = [chunk for chunk in self._own if chunk.number not in self._states[chunk.block].chunks]
        total, missing = (sum(chunk.stop - chunk.start for chunk in part) for part in (self._own, left))
        title, shown = "Drawing", self._setup.ranks.first
        with PictureBar(title, total, shown=shown, done=total - missing) as bar:
            for chunk in left:
                state = self._states[chunk.block]
                self._draw(chunk, state, bar)
                state.chunks.append(chunk.number)
                if self._folder is not None:
                    self._folder.save(chunk.block, state)
        return self._joined()

    def _missing(self, chunks: Sequence[Chunk]) -> list[int]:
        """Pictures that each block lacks, as process 0 finds them before any process draws more."""
        blocks = range(self._setup.settings.blocks)
        drawn = {
            number for block in blocks if self._folder is not None for number in self._folder.chunks(block)
        }
        missing = [0] * len(blocks)
        for chunk in chunks:
            missing[chunk.block] += chunk.stop - chunk.start if chunk.number not in drawn else 0
        first: list[int] = self._setup.ranks.gathered(missing)[0]
        return first

    def _state(self, block: int) -> BlockState:
        limit = self._setup.settings.compared
        if self._folder is None:
            return BlockState(Tally(1), FeatureSample(limit))
        return self._folder.load(block, limit)

    def _draw(self, chunk: Chunk, state: BlockState, bar: PictureBar) -> None:
        setup, plan, manifest = self._setup, self._plan, self._setup.bundle.manifest
        observer = Observer(FAKE, setup.instruments, state.tally, state.sample)
        for indices in _batches(chunk, setup.settings.batch_size):
            labels = indices % generator_of(manifest).nclass
            start = time.perf_counter()
            grids = draw(
                setup.runtime, manifest, plan.sampling, labels.tolist(), (plan.seed + indices).tolist()
            )
            images = from_pixels(setup.runtime.decode(grids))
            seconds = torch.full((len(indices),), (time.perf_counter() - start) / len(indices))
            block = torch.zeros(len(indices), dtype=torch.int64)
            state.tally.add(f"{FAKE} seconds", block, seconds)
            observer.add(indices, block, images, torch.from_numpy(labels))
            if self._folder is not None and indices[0] == 0:
                grid = picture_grid(images[:GRID_PICTURES].float() / 255, GRID_COLUMNS)
                save_grid(self._folder.path, grid)
            bar.advance(len(indices))

    def _joined(self) -> tuple[Tally, FeatureSample]:
        settings, ranks = self._setup.settings, self._setup.ranks
        tally, sample = Tally(settings.blocks), FeatureSample(settings.compared)
        for block in list(self._states):
            state = self._states.pop(block)  # a block's sums need not be in memory twice
            tally.put(block, state.tally.sums())
            if (content := state.sample.content()) is not None:
                sample.add(*content)
        whole = Tally(settings.blocks)
        whole.merge(ranks.summed(tally.sums()))
        return whole, gathered_sample(sample, ranks)


def _batches(chunk: Chunk, batch_size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(chunk.start, chunk.stop, batch_size):
        yield np.arange(start, min(start + batch_size, chunk.stop), dtype=np.int64)
