"""This process's share of the pictures of shards, numbered as one process alone would number them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from training.data.batch import Batch, to_batch
from training.data.loading import fitted_picture
from training.data.sources import IMAGE_COLUMN, LABEL_COLUMN, all_samples
from training.evaluation.ranks import Ranks


@dataclass(frozen=True)
class RealPictures:
    """The first `limit` samples, or all, of `shards`; the columns are those of Parquet files."""

    shards: str
    limit: int | None = None
    image_column: str = IMAGE_COLUMN
    label_column: str = LABEL_COLUMN


class ShardSlice:
    """Every `ranks.count`-th batch of `pictures`; `skipped` counts the samples left out of them so far."""

    def __init__(self, pictures: RealPictures, size: int, batch_size: int, ranks: Ranks) -> None:
        self.skipped = 0
        self._pictures = pictures
        self._size = size
        self._batch_size = batch_size
        self._ranks = ranks

    def batches(self) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Numbers i64 (B,) and pictures, resized on the short side and centre-cropped to `size` pixels.

        A sample that cannot be used is logged and keeps its number, so that others do not depend on it;
        other processes' samples are not decoded.
        """
        source, ranks = self._pictures, self._ranks
        samples = all_samples(
            source.shards, image_column=source.image_column, label_column=source.label_column
        )
        numbered = enumerate(islice(samples, source.limit))
        while part := list(islice(numbered, self._batch_size)):
            if part[0][0] // self._batch_size % ranks.count != ranks.rank:
                continue
            found = [
                (number, sample.label, image)
                for number, sample in part
                if (image := fitted_picture(sample, self._size))
            ]
            self.skipped += len(part) - len(found)
            if found:
                numbers, labels, images = zip(*found, strict=True)
                yield np.array(numbers, dtype=np.int64), to_batch(list(images), list(labels))
