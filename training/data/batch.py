"""A batch of labelled pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.validation import require


@dataclass(frozen=True)
class Batch:
    """`images` f32 (B, 3, H, W) in [0, 1]; `labels` i64 (B,).

    `position` says where the stream stands after this batch, in values that JSON knows; `skipped` counts the
    samples left out since the batch before.
    """

    images: Tensor
    labels: Tensor
    position: Mapping[str, Sequence[int]] = field(default_factory=dict)
    skipped: int = 0

    def pin_memory(self) -> Batch:
        """The same in page-locked memory; torch's DataLoader calls this."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())


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
