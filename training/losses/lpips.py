"""LPIPS on VGG16 (Zhang et al. 2018, version 0.1): a distance of pictures that people agree with."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from models.checkpoint import Weights, load_into, read_weights

# Channels of VGG16's convolutions; the features compared are those before each pooling ("M").
LAYERS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
WIDTHS = (64, 128, 256, 512, 512)
# Statistics of ImageNet for pictures in [-1, 1], as the linear layers were fitted with.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


def _vgg_layers() -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels = 3
    for layer in LAYERS:
        if isinstance(layer, int):
            layers += [nn.Conv2d(channels, layer, 3, padding=1), nn.ReLU()]
            channels = layer
        else:
            layers.append(nn.MaxPool2d(2))
    return layers


def unit_length(features: Tensor) -> Tensor:
    """`features` (B, C, h, w) with the channels of every place scaled to length 1; zeros stay zeros."""
    # Unlike the root of a sum of squares, vector_norm has a finite gradient at zero.
    lengths: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / (lengths + 1e-10)


class Lpips(nn.Module):
    """Distances (B,) of two batches f32 (B, 3, H, W) in [0, 1]; H and W of at least 16 pixels.

    `features` bears the names of torchvision's VGG16, `linear` the weight of each channel of its five stages.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*_vgg_layers())
        self.linear = nn.ParameterList(torch.zeros(width) for width in WIDTHS)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)

    def stages(self, images: Tensor) -> list[Tensor]:
        """VGG's features of `images` before each pooling and at the end, at unit length."""
        x = (images * 2 - 1 - self.shift) / self.scale
        found = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                found.append(x)
            x = layer(x)
        return [unit_length(features.float()) for features in (*found, x)]

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        total = images.new_zeros(len(images))
        for weights, own, other in zip(self.linear, self.stages(images), self.stages(others), strict=True):
            total = total + ((own - other).square().mean((2, 3)) * weights).sum(1)
        return total


def load_lpips(vgg_path: Path, linear_path: Path) -> Lpips:
    """LPIPS, frozen and in eval mode, from torchvision's VGG16 and the published linear layers.

    `linear_path` is `vgg.pth` of the package lpips or a file with the same keys (`lin0.model.1.weight`).
    Raises CheckpointError when a file cannot be read or does not fit.
    """
    return lpips_of(read_weights(vgg_path), vgg_path, linear_path)


def lpips_of(vgg: Weights, source: object, linear_path: Path) -> Lpips:
    """`load_lpips` from weights of VGG16 in memory, which messages call `source`."""
    network = Lpips()
    load_into(network.features, _below("features", vgg), source)
    linear = {
        re.sub(r"^lin(\d+)\.(model\.1\.)?weight$", r"\1", key): value.flatten()
        for key, value in read_weights(linear_path).items()
    }
    load_into(network.linear, linear, linear_path)
    return network.eval().requires_grad_(False)


def _below(name: str, weights: Weights) -> Weights:
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
