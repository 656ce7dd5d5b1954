"""The user's own classifier (`maskbit train perceptual`) as a judge of pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from models.bundle import file_digest
from models.validation import require
from training.checkpoints import newest_checkpoint
from training.classifier import load_classifier


class Judge:
    """Says which pictures show the class that they should."""

    def __init__(self, path: Path, classes: int, device: torch.device | str) -> None:
        """ConfigError unless the classifier at `path` knows as many classes as the model that it judges."""
        file = newest_checkpoint(path)
        network = load_classifier(file)
        self._classes = network.config.num_classes
        require(
            self._classes == classes,
            f"the judge {path} knows {self._classes} classes, the bundle has {classes}",
        )
        self.name = f"classifier {file.parent.name}/{file.stem} ({file_digest(file)[:12]})"
        self._network = network.to(device)
        self._device = device

    @torch.inference_mode()
    def right(self, images: Tensor, labels: Tensor) -> Tensor:
        """Whether each of `images` u8 (B, 3, H, W) is named as in `labels` i64 (B,); bool (B,) on the CPU.

        ConfigError for a label that the judge does not know.
        """
        require(
            int(labels.max()) < self._classes,
            f"a picture has the class {int(labels.max())}; the judge knows {self._classes}, from 0",
        )
        logits: Tensor = self._network(images.to(self._device).float() / 255)
        return logits.argmax(1).cpu() == labels
