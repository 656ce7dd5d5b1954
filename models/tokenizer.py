"""Pixels to a grid of tokens and back: what every tokenizer offers, and the convolutional `vqgan+` and
`maskgit` (SPEC section 1).
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from models.config import TokenizerConfig
from models.layers import Conv2dSame, DownLevel, GroupNorm, ResBlocks, UpLevel, silu
from models.quantizer import LookupFreeQuantizer, LookupQuantizer, Quantized
from models.validation import require


class Tokenizer(nn.Module, ABC):
    """What the runtime and the training of generators need of a tokenizer, under its published keys."""

    config: TokenizerConfig

    @abstractmethod
    def encode(self, images: Tensor) -> Quantized:
        """Tokens of `images` f32 (B, 3, H, W) in [0, 1], H and W multiples of the stride."""

    @abstractmethod
    def decode_indices(self, indices: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), not clamped, of token `indices` i64 (B, h, w) in [0, num_codes)."""


class Encoder(nn.Module):
    """Pixels f32 (B, 3, H, W) in [0, 1] to latents (B, token_size, H/stride, W/stride)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        groups, blocks, last = config.norm_groups, config.num_res_blocks, config.num_resolutions - 1
        widths = [config.hidden_channels * m for m in config.channel_mult]
        self.conv_in = Conv2dSame(config.num_channels, config.hidden_channels, 3, bias=False)
        self.down = nn.ModuleList(
            DownLevel(
                config.hidden_channels if i == 0 else widths[i - 1],
                width,
                blocks,
                groups,
                halve=i < last,
                with_conv=config.sample_with_conv,
            )
            for i, width in enumerate(widths)
        )
        self.mid = ResBlocks(widths[-1], widths[-1], blocks, groups)
        self.norm_out = GroupNorm(groups, widths[-1])
        self.conv_out = Conv2dSame(widths[-1], config.token_size, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        return self.conv_out(silu(self.norm_out(self.mid(x))))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Codes (B, token_size, h, w) to pixels (B, 3, h*stride, w*stride), not clamped.

    Keys count the levels in the order in which they run; those of `maskgit` from the pixels' side.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        blocks = config.num_res_blocks_decoder or config.num_res_blocks
        widths = [config.hidden_channels * m for m in reversed(config.channel_mult)]
        self.conv_in = Conv2dSame(config.token_size, widths[0], 3)
        self.mid = ResBlocks(widths[0], widths[0], blocks, groups)
        levels = [
            UpLevel(widths[max(k - 1, 0)], width, blocks, groups, double=k < len(widths) - 1)
            for k, width in enumerate(widths)
        ]
        self.reversed = config.model_class == "maskgit"
        self.up = nn.ModuleList(reversed(levels) if self.reversed else levels)
        self.norm_out = GroupNorm(groups, widths[-1])
        self.conv_out = Conv2dSame(widths[-1], config.num_channels, 3)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.mid(self.conv_in(codes))
        for level in reversed(self.up) if self.reversed else self.up:
            x = level(x)
        return self.conv_out(silu(self.norm_out(x)))  # type: ignore[no-any-return]


class ConvTokenizer(Tokenizer):
    """Encoder, quantizer and decoder of `vqgan+` and `maskgit`, which can be trained."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        require(config.model_class != "taming", "model_class 'taming' is for inference and cannot be trained")
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize: LookupFreeQuantizer | LookupQuantizer = (
            LookupFreeQuantizer(config) if config.quantizer_type == "lookup-free" else LookupQuantizer(config)
        )

    def encode(self, images: Tensor) -> Quantized:
        return self.quantize(self.encoder(images))  # type: ignore[no-any-return]

    def decode_indices(self, indices: Tensor) -> Tensor:
        return self.decoder(self.quantize.codes_of(indices))  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruction of `images`, not clamped, and their tokens."""
        quantized = self.encode(images)
        return self.decoder(quantized.codes), quantized
