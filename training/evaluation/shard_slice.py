"""This process's share of the pictures of shards, numbered as one process alone would number them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.errors import InputError
from training.batch import Batch, to_batch
from training.evaluation.ranks import Ranks
from training.pictures import decode
from training.sample import Sample, log_skipped
from training.sources import find_shards
from training.transforms import center_fit


def numbered_batches(
    pattern: str, size: int, batch_size: int, ranks: Ranks, limit: int | None
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """Numbers i64 (B,) and pictures of every `ranks.count`-th batch of the first `limit` samples.

    Pictures are resized on the short side and centre-cropped to `size` pixels. A sample that cannot be
    decoded is logged and keeps its number, so that others do not depend on it; other processes' samples are
    not decoded.
    """
    samples = enumerate(islice(_samples(pattern), limit))
    while part := list(islice(samples, batch_size)):
        if part[0][0] // batch_size % ranks.count != ranks.rank:
            continue
        found = [(number, sample.label, image) for number, sample in part if (image := _fitted(sample, size))]
        if found:
            numbers, labels, images = zip(*found, strict=True)
            yield np.array(numbers, dtype=np.int64), to_batch(list(images), list(labels))


def _samples(pattern: str) -> Iterator[Sample]:
    for shard in find_shards(pattern):
        yield from shard.read()


def _fitted(sample: Sample, size: int) -> Image.Image | None:
    try:
        return center_fit(decode(sample.content()), size)
    except InputError as exc:
        log_skipped(sample, exc)
        return None
