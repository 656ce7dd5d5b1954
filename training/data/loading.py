"""Batches of labelled pictures, for training without end and for evaluation once through."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader

from models.errors import ConfigError, InputError
from models.validation import require
from training.data.batch import Batch, to_batch
from training.data.class_names import check_class_folders
from training.data.config import DatasetConfig
from training.data.lanes import Layout, starting_positions
from training.data.pictures import decode
from training.data.sample import Sample, log_skipped
from training.data.sources import IMAGE_COLUMN, LABEL_COLUMN, all_samples, find_shards
from training.data.training_batches import TrainingBatches
from training.data.transforms import center_fit

log = logging.getLogger(__name__)


def training_loader(
    config: DatasetConfig,
    batch_size: int,
    seed: int,
    start: int,
    *,
    rank: int = 0,
    world: int = 1,
    position: Mapping[str, Any] | None = None,
) -> Iterator[Batch]:
    """Endless augmented batches of process `rank` of `world`, from number `start` on, decoded ahead.

    Batches are a function of (data, seed, `parts`, loader processes). `position` is that of batch
    `start - 1`, the union over all processes; without it the stream is run through from its beginning. A
    sample that cannot be used is logged and replaced by the next. Raises ConfigError, also while it iterates.
    """
    check_class_folders(config)
    parts = own_parts(config, rank, world)
    require(
        batch_size % len(parts) == 0,
        f"a batch of {batch_size} pictures a process cannot be shared evenly by its {len(parts)} parts "
        f"(dataset.params.parts is {config.parts}, processes are {world})",
    )
    shards = find_shards(
        config.train_shards_path_or_url, image_column=config.image_column, label_column=config.label_column
    )
    workers = max(1, config.num_workers_per_gpu)
    layout = Layout(shards, seed, config.shuffle_buffer_size, config.parts or world, workers)
    keys = [layout.key(part, worker) for part in parts for worker in range(workers)]
    positions, same = starting_positions(keys, position or {})
    if not same:
        log.warning(
            "the checkpoint's data were divided otherwise (files, seed, shuffle buffer, parts or loader "
            "processes); reading continues with epoch %d",
            next(iter(positions.values()))[0],
        )
    skip = 0 if position else start
    dataset = TrainingBatches(config, layout, parts, batch_size // len(parts), start - skip, positions)
    return _with_positions(_loader(dataset, config), positions, skip)


def own_parts(config: DatasetConfig, rank: int, world: int) -> range:
    """The parts of the data that process `rank` of `world` reads."""
    parts = config.parts or world
    require(
        parts % world == 0, f"dataset.params.parts is {parts}; a multiple of the {world} processes is needed"
    )
    return range(rank * parts // world, (rank + 1) * parts // world)


def _loader(dataset: TrainingBatches, config: DatasetConfig) -> DataLoader[Batch | ConfigError]:
    workers = config.num_workers_per_gpu
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        persistent_workers=config.persistent_workers and workers > 0,
        pin_memory=config.pin_memory and torch.cuda.is_available(),
    )


def _with_positions(
    loader: DataLoader[Batch | ConfigError], positions: Mapping[str, Sequence[int]], skip: int
) -> Iterator[Batch]:
    """Batches with the positions of all lanes of this process, of which each has only those it moved."""
    for number, item in enumerate(loader):
        if isinstance(item, ConfigError):
            raise item
        positions = {**positions, **item.position}
        if number >= skip:
            yield replace(item, position=positions)


def evaluation_batches(
    pattern: str,
    resolution: int,
    batch_size: int,
    limit: int | None = None,
    *,
    image_column: str = IMAGE_COLUMN,
    label_column: str = LABEL_COLUMN,
) -> Iterator[Batch]:
    """The first `limit` sound pictures in batches of `batch_size`, as one process evaluates them in training.

    Batches are full but for the last, whereas those of `ShardSlice` belong to one of many processes and keep
    a sample's number whatever becomes of the others. Samples that cannot be used are logged and counted.
    Raises ConfigError when no picture is left.
    """
    images: list[Image.Image] = []
    labels: list[int] = []
    found = skipped = 0
    for sample in all_samples(pattern, image_column=image_column, label_column=label_column):
        if found == limit:
            break
        image = fitted_picture(sample, resolution)
        if image is None:
            skipped += 1
            continue
        images.append(image)
        labels.append(sample.label)
        found += 1
        if len(images) == batch_size:
            yield replace(to_batch(images, labels), skipped=skipped)
            images, labels, skipped = [], [], 0
    if images:
        yield replace(to_batch(images, labels), skipped=skipped)
    require(found > 0, f"{pattern}: no labelled picture that can be decoded")


def fitted_picture(sample: Sample, resolution: int) -> Image.Image | None:
    """The picture resized on its short side and centre-cropped; None, and logged, if it cannot be used."""
    try:
        return center_fit(decode(sample.content()), resolution)
    except InputError as exc:
        log_skipped(sample, exc)
        return None
