"""Discriminators of stage I: images to a map of logits, high where a patch looks real (SPEC section 4)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import Conv2dSame, same_padding
from training.losses.config import NORM_GROUPS, DiscriminatorConfig

POOLED_SIZE = 16  # logits along each side of VQGAN+'s map
INITIAL_STD = 0.02
MAX_WIDENING = 8  # of PatchGAN's channels


class BlurDownsample(nn.Module):
    """Halve a map after smoothing it with a binomial kernel of `taps` x `taps`."""

    kernel: Tensor

    def __init__(self, taps: int) -> None:
        super().__init__()
        row = torch.tensor([math.comb(taps - 1, i) for i in range(taps)], dtype=torch.float32)
        self.register_buffer("kernel", (row[:, None] * row / row.sum() ** 2)[None, None])

    def forward(self, x: Tensor) -> Tensor:
        channels, taps = x.shape[1], self.kernel.shape[-1]
        top, bottom = same_padding(x.shape[2], taps, 2)
        left, right = same_padding(x.shape[3], taps, 2)
        padded = F.pad(x, (left, right, top, bottom))
        return F.conv2d(padded, self.kernel.expand(channels, -1, -1, -1), stride=2, groups=channels)


class VqganPlusDiscriminator(nn.Module):
    """Discriminator of VQGAN+: images f32 (B, 3, H, W) in [0, 1] to logits (B, 1, 16, 16).

    H and W are at least 2^num_stages, the halvings before the pooling.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        first = config.hidden_channels
        widths = [first << stage for stage in range(config.num_stages)]
        self.block_in = nn.Sequential(Conv2dSame(config.num_channels, first, 5), nn.LeakyReLU(0.1))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                Conv2dSame(before, width, 3),
                BlurDownsample(config.blur_kernel_size) if config.blur_resample else nn.AvgPool2d(2),
                nn.GroupNorm(NORM_GROUPS, width),
                nn.LeakyReLU(0.1),
            )
            for before, width in pairwise([first, *widths])
        )
        self.pool = nn.AdaptiveMaxPool2d(POOLED_SIZE)
        self.to_logits = nn.Sequential(
            Conv2dSame(widths[-1], widths[-1], 1), nn.LeakyReLU(0.1), Conv2dSame(widths[-1], 1, 5)
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.block_in(images)
        for block in self.blocks:
            x = block(x)
        return self.to_logits(self.pool(x))  # type: ignore[no-any-return]


class PatchGan(nn.Module):
    """PatchGAN of pix2pix (Isola et al. 2017): images f32 (B, 3, H, W) in [0, 1] to logits (B, 1, h, w).

    In training mode its batch norms use the statistics of the batch at hand: real and fake pictures go
    through one after the other.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        widths = [
            config.hidden_channels * min(1 << stage, MAX_WIDENING) for stage in range(config.num_stages + 1)
        ]
        layers = [nn.Conv2d(config.num_channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for stage, (before, width) in enumerate(pairwise(widths), start=1):
            stride = 2 if stage < config.num_stages else 1
            layers += [
                nn.Conv2d(before, width, 4, stride, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.main(images)  # type: ignore[no-any-return]


def build_discriminator(config: DiscriminatorConfig) -> VqganPlusDiscriminator | PatchGan:
    """The discriminator that `config` describes, its convolutions initialised with N(0, 0.02)."""
    network = PatchGan(config) if config.name == "Original" else VqganPlusDiscriminator(config)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=INITIAL_STD)
    return network
