"""A small residual classifier: the judge of drawn pictures, trained on the user's own shards."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import ClassifierConfig

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

    def features(self, images: Tensor) -> Tensor:
        """Pooled features (B, widths[-1])."""
        return F.relu(self.norm(self.units(self.stem(images * 2 - 1)))).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))  # type: ignore[no-any-return]


@torch.inference_mode()
def accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    """Share of `images` f32 (B, 3, H, W) in [0, 1] whose class the network names rightly."""
    right = [
        (network(part).argmax(1) == names).sum()
        for part, names in zip(torch.split(images, 64), torch.split(labels, 64), strict=True)
    ]
    return float(torch.stack(right).sum()) / len(labels)
