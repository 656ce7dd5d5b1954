"""Labelled pictures from WebDataset shards, as a stream of batches that can start at any batch.

Batch k is a function of (shards, seed, k) alone: it does not depend on the number of loader processes, and a
resumed run continues with the very batch that the stopped one would have read.
"""

from __future__ import annotations

import glob
import io
import json
import logging
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from braceexpand import braceexpand
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.tariterators import group_by_keys, tar_file_expander

from models.config import require
from models.errors import ConfigError
from training.config import DatasetConfig
from training.pictures import to_rgb
from training.transforms import center_fit, random_crop

CLASS_FILE = 'class names are read from a JSON object {"0": name, "1": name, ...}'
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
    """Class names by label from `dataset.classes`, by default `classes.json` beside the training shards."""
    path = (
        Path(config.classes)
        if config.classes
        else Path(expand_shards(config.train_shards)[0]).parent / "classes.json"
    )
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))
        names = tuple(str(mapping[str(label)]) for label in range(len(mapping)))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ConfigError(f"{path}: {CLASS_FILE} ({exc!r})") from exc
    require(bool(names), f"{path}: {CLASS_FILE}")
    return names


def read_samples(shards: list[str]) -> Iterator[Sample]:
    """Samples of `shards` in file order; one without a picture or a class number is logged and left out.

    Raises ConfigError for a shard that is no sound tar file.
    """
    for shard in shards:
        # webdataset's own opener leaves files open, which is why the stream comes from here.
        with open(shard, "rb") as stream:
            files = tar_file_expander([{"url": shard, "stream": stream}])
            try:
                for record in group_by_keys(files):
                    if (sample := _sample(record)) is not None:
                        yield sample
            except (tarfile.TarError, ValueError) as exc:
                reason = str(exc.args[0]).partition(" @ ")[0]
                raise ConfigError(f"{shard}: not a sound WebDataset shard ({reason})") from exc


def _sample(record: dict[str, Any]) -> Sample | None:
    suffix = next((key for key in IMAGE_KEYS if key in record), None)
    label = record.get("cls", b"").strip()
    if suffix is None or not label.isdigit():
        log.warning("sample %s has no picture or no class number and was skipped", record["__key__"])
        return None
    return Sample(record["__key__"], record[suffix], int(label))


def shuffled_epoch(shards: list[str], seed: int, epoch: int, buffer_size: int) -> Iterator[Sample]:
    """One pass in an order that (seed, epoch) decides: shards permuted, samples through a buffer."""
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
            return to_rgb(image)
    except Exception as exc:  # a broken file can trip Pillow's decoders in any way
        log.warning("sample %s cannot be decoded and was skipped: %s", sample.key, exc)
        return None


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise ConfigError unless all `labels` are below `classes`."""
    require(
        bool((labels < classes).all()),
        f"a shard holds class {int(labels.max())}; the recipe has {classes} classes, 0 to {classes - 1}",
    )


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
                # Leaving a whole batch out would shift all later ones, for a resumed run only.
                require(
                    bool(images), f"{self.config.train_shards}: no picture of batch {index} can be decoded"
                )
                yield to_batch(images, labels)
                images, labels = [], []


def training_loader(config: DatasetConfig, batch_size: int, seed: int, start: int) -> Iterator[Batch]:
    """Iterator over TrainingBatches, decoded ahead in `config.workers` processes."""
    dataset = TrainingBatches(config, batch_size, seed, start)
    return _plain_errors(iter(DataLoader(dataset, batch_size=None, num_workers=config.workers)))


def _plain_errors(batches: Iterator[Batch]) -> Iterator[Batch]:
    try:
        yield from batches
    except ConfigError as exc:
        # A loader process sends its traceback as the message; the last line is "module.ConfigError: text".
        last = str(exc).splitlines()[-1]
        raise ConfigError(last.partition("ConfigError: ")[2] or last) from exc


def evaluation_batches(
    pattern: str, image_size: int, batch_size: int, limit: int | None = None
) -> Iterator[Batch]:
    """Pictures of the shards in file order, resized on the short side and centre-cropped.

    Raises ConfigError when there are none.
    """
    images: list[Image.Image] = []
    labels: list[int] = []
    found = False
    for count, sample in enumerate(read_samples(expand_shards(pattern))):
        if limit is not None and count >= limit:
            break
        if (image := decode(sample)) is None:
            continue
        found = True
        images.append(center_fit(image, image_size))
        labels.append(sample.label)
        if len(images) == batch_size:
            yield to_batch(images, labels)
            images, labels = [], []
    if images:
        yield to_batch(images, labels)
    require(found, f"{pattern}: the shards hold no labelled picture that can be decoded")
