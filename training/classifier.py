"""A small residual classifier: the judge of drawn pictures, trained on the user's own shards."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoint import load_into
from models.errors import CheckpointError
from models.validation import from_mapping
from training.checkpoints import load_checkpoint, newest_checkpoint
from training.recipe import ClassifierConfig

GROUP_CHANNELS = 8  # channels normalised together


class Unit(nn.Module):
    """Pre-activation residual unit, halving the picture when `stride` is 2."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(in_channels // GROUP_CHANNELS, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm2 = nn.GroupNorm(out_channels // GROUP_CHANNELS, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(x))
        return self.shortcut(h) + self.conv2(F.relu(self.norm2(self.conv1(h))))  # type: ignore[no-any-return]


class Classifier(nn.Module):
    """Logits (B, num_classes) of pictures f32 (B, 3, H, W) in [0, 1]."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.stem = nn.Conv2d(3, widths[0], 3, 2, 1)
        self.units = nn.Sequential(
            *(Unit(widths[max(i - 1, 0)], w, 1 if i == 0 else 2) for i, w in enumerate(widths))
        )
        self.norm = nn.GroupNorm(widths[-1] // GROUP_CHANNELS, widths[-1])
        self.head = nn.Linear(widths[-1], config.num_classes)

    def stages(self, images: Tensor) -> list[Tensor]:
        """Maps (B, width, h, w) after each unit, the last one normalised; unit by unit h and w are halved."""
        x = self.stem(images * 2 - 1)
        found = []
        for unit in self.units:
            x = unit(x)
            found.append(x)
        return [*found[:-1], F.relu(self.norm(x))]

    def maps(self, images: Tensor) -> Tensor:
        """Features (B, widths[-1], h, w) of every place."""
        return self.stages(images)[-1]

    def features(self, images: Tensor) -> Tensor:
        """Pooled features (B, widths[-1])."""
        return self.maps(images).mean((2, 3))

    def head_of(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes) of the last stage's `maps`."""
        return self.head(maps.mean((2, 3)))  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        return self.head_of(self.maps(images))


def load_classifier(path: Path) -> Classifier:
    """The averaged classifier of a checkpoint or of the newest one in a run folder, frozen, in eval mode.

    Raises CheckpointError for anything else.
    """
    file = newest_checkpoint(path)
    state = load_checkpoint(file)
    model = state["recipe"]["model"]
    if "widths" not in model:
        raise CheckpointError(f"{file} is no classifier; `maskbit train perceptual` writes one")
    network = Classifier(from_mapping(ClassifierConfig, model))
    load_into(network, state["ema"], file)
    return network.eval().requires_grad_(False)
