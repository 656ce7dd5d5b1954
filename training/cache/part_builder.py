"""One part of a token cache: samples are decoded and cropped in threads while the tokenizer is at work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from models.bits import Indices
from models.errors import InputError
from models.runtime.torch_runtime import full_precision
from models.tokenizer import Tokenizer
from models.validation import require
from training.cache.manifest import CachePlan
from training.cache.token_cache import Records, as_records
from training.data.config import DatasetConfig
from training.data.pictures import decode
from training.data.sample import Sample, Shard, log_skipped
from training.data.transforms import crop_source_side, random_crop

T = TypeVar("T")
R = TypeVar("R")
Crops = NDArray[np.uint8]

IMAGES_PER_CALL = 32  # of the tokenizer
PICTURES_AHEAD = 64  # decoded, at most, while the tokenizer is at work


class PartBuilder:
    """Turns samples into records; `encoded` counts the pictures. To be closed when no longer needed."""

    def __init__(
        self, data: DatasetConfig, plan: CachePlan, tokenizer: Tokenizer, device: torch.device
    ) -> None:
        self.encoded = 0
        self._data = replace(data, flip=plan.flips == "drawn")
        self._plan = plan
        self._tokenizer = tokenizer
        self._device = device
        self._pool = ThreadPoolExecutor(max(1, data.num_workers_per_gpu))

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)

    def records(
        self, shard: Shard, number: int, wanted: range, advance: Callable[[int], object]
    ) -> tuple[Records, int]:
        """Records of the `wanted` samples of `shard`, which is the plan's `number`, and how many there were.

        A sample that is no sound picture is logged and gets no record.
        """
        samples = islice(shard.read(start=wanted.start), len(wanted))
        cropped = ahead(self._pool, lambda sample: (sample, self.crops(sample, number)), samples)
        parts = [np.zeros(0, self._plan.record)]
        count = 0
        while group := list(islice(cropped, max(1, IMAGES_PER_CALL // self._plan.variants))):
            sound = [(sample.label, crops) for sample, crops in group if crops is not None]
            if sound:
                labels, pictures = zip(*sound, strict=True)
                parts.append(as_records(self._plan, self.encode(np.stack(pictures)), labels))
            count += len(group)
            self.encoded += len(sound)
            advance(len(sound))
        return np.concatenate(parts), count

    def crops(self, sample: Sample, number: int) -> Crops | None:
        """All variants u8 (variants, H, W, 3) of the picture of `sample`; None when it is not sound.

        Crop j of a sample is a function of (seed, number of the shard, index in the shard, j).
        """
        require(
            sample.label < self._plan.classes,
            f"{sample} is of class {sample.label}; the recipe has {self._plan.classes} classes, 0 to "
            f"{self._plan.classes - 1}",
        )
        try:
            image = decode(sample.content(), crop_source_side(self._data))
        except InputError as exc:
            log_skipped(sample, exc)
            return None
        return np.stack([np.asarray(crop) for crop in self._variants(image, number, sample.index)])

    def _variants(self, image: Image.Image, number: int, index: int) -> Iterator[Image.Image]:
        for crop in range(self._plan.crops):
            rng = np.random.default_rng([self._plan.seed, number, index, crop])
            cropped = random_crop(image, self._data, rng)
            yield cropped
            if self._plan.flips == "stored":
                yield ImageOps.mirror(cropped)

    @torch.inference_mode()
    def encode(self, crops: Crops) -> Indices:
        """Token indices i64 (n, variants, N) of `crops` u8 (n, variants, H, W, 3)."""
        # To floats on the CPU, as in training from pixels: a GPU divides by 255 with another last bit.
        pixels = torch.from_numpy(crops).flatten(0, 1).permute(0, 3, 1, 2).float().div_(255)
        with full_precision():
            indices = self._tokenizer.encode(pixels.to(self._device)).indices
        result: Indices = indices.reshape(*crops.shape[:2], -1).cpu().numpy()
        return result


def ahead(pool: ThreadPoolExecutor, call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Results of `call` in the order of `items`, of which PICTURES_AHEAD at most are under way."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(call, item))
        if len(waiting) >= PICTURES_AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
