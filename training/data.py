"""Labelled pictures from WebDataset shards, as a stream of batches that can start at any batch.

Batch k is a function of (shards, seed, k) alone: it does not depend on the number of loader processes, and a
resumed run continues with the very batch that the stopped one would have read.
"""

from __future__ import annotations

import glob
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import webdataset
from braceexpand import braceexpand
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from models.errors import ConfigError
from training.config import DatasetConfig
from training.transforms import center_fit, random_crop

IMAGE_KEYS = ("webp", "jpg", "jpeg", "png")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One picture, still compressed, and its class."""

    key: str
    image: bytes
    label: int


@dataclass(frozen=True)
class Batch:
    """`images` f32 (B, 3, H, W) in [0, 1]; `labels` i64 (B,)."""

    images: Tensor
    labels: Tensor


def expand_shards(pattern: str) -> list[str]:
    """Shard files of a path, glob or {a..b} brace pattern, in order."""
    found: list[str] = []
    for part in braceexpand(pattern):
        found += sorted(glob.glob(part)) if glob.has_magic(part) else [part]
    missing = [name for name in found if not Path(name).is_file()]
    if missing or not found:
        raise ConfigError(f"no shard file at {', '.join(missing) or pattern}; expected WebDataset .tar files")
    return found


def read_class_names(config: DatasetConfig) -> tuple[str, ...]:
    """Class names in label order from `dataset.classes`, by default `classes.json` beside the training shards."""
    path = Path(config.classes) if config.classes else Path(expand_shards(config.train_shards)[0]).parent / "classes.json"
    try:
        mapping = json.loads(path.read_text())
        return tuple(str(mapping[str(k)]) for k in range(len(mapping)))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ConfigError(f'{path}: class names are read from a JSON object {{"0": name, "1": name, ...}} ({exc!r})') from exc


def read_samples(shards: list[str]) -> Iterator[Sample]:
    """Samples of `shards` in file order; a sample without picture or class is logged and left out."""
    dataset = webdataset.WebDataset(shards, shardshuffle=False, nodesplitter=None, workersplitter=None)
    for record in dataset:
        suffix = next((k for k in IMAGE_KEYS if k in record), None)
        if suffix is None or "cls" not in record:
            log.warning("sample %s has no picture or no cls and was skipped", record["__key__"])
            continue
        yield Sample(record["__key__"], record[suffix], int(record["cls"]))


def shuffled_epoch(shards: list[str], seed: int, epoch: int, buffer_size: int) -> Iterator[Sample]:
    """One pass over `shards` in an order that (seed, epoch) decides: shards permuted, samples through a buffer."""
    rng = np.random.default_rng([seed, epoch])
    buffer: list[Sample] = []
    for sample in read_samples([shards[i] for i in rng.permutation(len(shards))]):
        if len(buffer) < buffer_size:
            buffer.append(sample)
            continue
        slot = int(rng.integers(buffer_size))
        buffer[slot], sample = sample, buffer[slot]
        yield sample
    for i in rng.permutation(len(buffer)):
        yield buffer[i]


def decode(sample: Sample) -> Image.Image | None:
    """RGB picture of `sample`; None, with its key logged, when it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(sample.image)) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as exc:
        log.warning("sample %s cannot be decoded and was skipped: %s", sample.key, exc)
        return None


def to_batch(images: list[Image.Image], labels: list[int]) -> Batch:
    """Stack equally sized RGB pictures."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return Batch(pixels.permute(0, 3, 1, 2).float().div_(255), torch.tensor(labels))


class TrainingBatches(IterableDataset[Batch]):
    """Endless augmented batches, from batch `start` of the stream on."""

    def __init__(self, config: DatasetConfig, batch_size: int, seed: int, start: int = 0) -> None:
        self.config = config
        self.shards = expand_shards(config.train_shards)
        self.batch_size = batch_size
        self.seed = seed
        self.start = start

    def _samples(self) -> Iterator[tuple[int, Sample]]:
        position = 0
        for epoch in range(2**31):
            before = position
            for sample in shuffled_epoch(self.shards, self.seed, epoch, self.config.shuffle_buffer):
                yield position, sample
                position += 1
            if position == before:
                raise ConfigError(f"{self.config.train_shards}: the shards hold no labelled picture")

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        images: list[Image.Image] = []
        labels: list[int] = []
        for position, sample in self._samples():
            index = position // self.batch_size
            # Every loader process walks the whole stream but decodes only its own batches.
            if index < self.start or (index - self.start) % workers != worker:
                continue
            if (image := decode(sample)) is not None:
                rng = np.random.default_rng([self.seed, position, 1])
                images.append(random_crop(image, self.config, rng))
                labels.append(sample.label)
            if position % self.batch_size == self.batch_size - 1:
                if images:
                    yield to_batch(images, labels)
                images, labels = [], []


def training_loader(config: DatasetConfig, batch_size: int, seed: int, start: int) -> Iterator[Batch]:
    """Iterator over TrainingBatches, decoded ahead in `config.workers` processes."""
    dataset = TrainingBatches(config, batch_size, seed, start)
    loader = DataLoader(dataset, batch_size=None, num_workers=config.workers)
    return iter(loader)


def evaluation_batches(pattern: str, image_size: int, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
    """Pictures of the shards in file order, resized on the short side and centre-cropped, without augmentation."""
    images: list[Image.Image] = []
    labels: list[int] = []
    for count, sample in enumerate(read_samples(expand_shards(pattern))):
        if limit is not None and count >= limit:
            break
        if (image := decode(sample)) is None:
            continue
        images.append(center_fit(image, image_size))
        labels.append(sample.label)
        if len(images) == batch_size:
            yield to_batch(images, labels)
            images, labels = [], []
    if images:
        yield to_batch(images, labels)
