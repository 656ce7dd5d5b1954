"""The original VQGAN of Esser et al. (2021) under its own keys, for inference (SPEC section 1).

It differs from `ConvTokenizer` in its biases, in shortcuts that read the block's input, in attention at the
lowest resolution, in symmetric padding, and in pixels that range over [-1, 1] inside.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.config import TokenizerConfig
from models.layers import GroupNorm
from models.quantizer import LookupQuantizer, Quantized
from models.tokenizer import Tokenizer


def conv3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """3x3 convolution that keeps the size."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


class Block(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels)
        self.conv1 = conv3(in_channels, out_channels)
        self.norm2 = GroupNorm(groups, out_channels)
        self.conv2 = conv3(out_channels, out_channels)
        self.nin_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Single-head attention among all positions, added to its input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        query, key, value = (part(h).flatten(2).mT[:, None] for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(query, key, value)[:, 0].mT.reshape(x.shape)
        return x + self.proj_out(mixed)  # type: ignore[no-any-return]


class Middle(nn.Module):
    """Block, attention, block."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = Block(channels, channels, groups)
        self.attn_1 = Attention(channels, groups)
        self.block_2 = Block(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Halving by a strided convolution, padded at the right and bottom alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Nearest doubling and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


class Level(nn.Module):
    """Blocks of one resolution, each followed by attention where `attention` says so."""

    def __init__(
        self, in_channels: int, out_channels: int, count: int, groups: int, *, attention: bool
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            Block(in_channels if j == 0 else out_channels, out_channels, groups) for j in range(count)
        )
        self.attn = nn.ModuleList(Attention(out_channels, groups) for _ in range(count if attention else 0))
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x: Tensor) -> Tensor:
        for j, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[j](x)
        resample = self.downsample or self.upsample
        return x if resample is None else resample(x)


def _widths(config: TokenizerConfig) -> list[int]:
    return [config.hidden_channels * m for m in config.channel_mult]


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] to latents (B, token_size, H/stride, W/stride)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        groups, widths, last = config.norm_groups, _widths(config), config.num_resolutions - 1
        self.conv_in = conv3(config.num_channels, config.hidden_channels)
        self.down = nn.ModuleList()
        for i, (before, width) in enumerate(zip([config.hidden_channels, *widths], widths, strict=False)):
            level = Level(before, width, config.num_res_blocks, groups, attention=i == last)
            level.downsample = Downsample(width) if i < last else None
            self.down.append(level)
        self.mid = Middle(widths[-1], groups)
        self.norm_out = GroupNorm(groups, widths[-1])
        self.conv_out = conv3(widths[-1], config.token_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Codes (B, token_size, h, w) to pixels (B, 3, h*stride, w*stride) around [-1, 1]."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        groups, widths, last = config.norm_groups, _widths(config), config.num_resolutions - 1
        count = (config.num_res_blocks_decoder or config.num_res_blocks) + 1
        self.conv_in = conv3(config.token_size, widths[-1])
        self.mid = Middle(widths[-1], groups)
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level(widths[min(i + 1, last)], width, count, groups, attention=i == last)
            level.upsample = Upsample(width) if i > 0 else None
            self.up.append(level)
        self.norm_out = GroupNorm(groups, widths[0])
        self.conv_out = conv3(widths[0], config.num_channels)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.mid(self.conv_in(codes))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))  # type: ignore[no-any-return]


class TamingTokenizer(Tokenizer):
    """The whole VQGAN; its attention stands at the lowest resolution, 16x16 in the published model."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = LookupQuantizer(config)
        self.quant_conv = nn.Conv2d(config.token_size, config.token_size, 1)
        self.post_quant_conv = nn.Conv2d(config.token_size, config.token_size, 1)

    def encode(self, images: Tensor) -> Quantized:
        return self.quantize(self.quant_conv(self.encoder(images * 2 - 1)))  # type: ignore[no-any-return]

    def decode_indices(self, indices: Tensor) -> Tensor:
        codes = self.post_quant_conv(self.quantize.codes_of(indices))
        return (self.decoder(codes) + 1) / 2  # type: ignore[no-any-return]
