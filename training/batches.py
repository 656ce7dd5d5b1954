"""The batches of a run, from the step on at which it stands."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from typing import TypeVar

from accelerate import Accelerator

from training.checkpoints import RunState
from training.config import LoopConfig
from training.data.batch import Batch
from training.data.loading import evaluation_batches, training_loader
from training.recipe import Recipe

EVALUATED_PICTURES = 2000

T = TypeVar("T")


def picture_batches(recipe: Recipe, accelerator: Accelerator, state: RunState) -> Iterator[Batch]:
    """This process's batches of pictures from `state.step` on."""
    loop = recipe.training
    # A run that has read tokens from a cache begins with the first epoch of pictures.
    start = next_batch(loop, state) if state.position else 0
    batches = training_loader(
        recipe.dataset,
        loop.per_gpu_batch_size,
        loop.seed,
        start,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        position=None if loop.overfit_batch else state.position,
    )
    return repeated(batches, loop, state)


def evaluation_pictures(recipe: Recipe, size: int, limit: int = EVALUATED_PICTURES) -> Iterator[Batch]:
    """Batches of `size` from the evaluation set, of the first `limit` pictures at most.

    Few enough for the main process alone, while the others wait; `maskbit evaluate` measures the whole set.
    """
    dataset = recipe.dataset
    return evaluation_batches(
        dataset.eval_shards_path_or_url,
        dataset.resolution,
        size,
        limit,
        image_column=dataset.image_column,
        label_column=dataset.label_column,
    )


def next_batch(loop: LoopConfig, state: RunState) -> int:
    """Number of the batch of each process that is read next; 0 when the first ones repeat for ever."""
    return 0 if loop.overfit_batch else state.step * loop.gradient_accumulation_steps


def repeated(batches: Iterator[T], loop: LoopConfig, state: RunState) -> Iterator[T]:
    """`batches`; with `overfit_batch` the first of them again and again, continued at `state.step`."""
    if not loop.overfit_batch:
        return batches
    few = list(islice(batches, loop.overfit_batch_num))
    return islice(cycle(few), state.step * loop.gradient_accumulation_steps % len(few), None)
