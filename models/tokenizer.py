"""The convolutional tokenizer `vqgan+`: pixels to a grid of tokens and back (SPEC section 1)."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.config import TokenizerConfig
from models.layers import Conv2dSame, DownLevel, GroupNorm, ResBlocks, UpLevel
from models.quantizer import LookupFreeQuantizer, LookupQuantizer, Quantized


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
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Codes (B, token_size, h, w) to pixels (B, 3, h*stride, w*stride), not clamped."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        blocks = config.num_res_blocks_decoder or config.num_res_blocks
        widths = [config.hidden_channels * m for m in reversed(config.channel_mult)]
        self.conv_in = Conv2dSame(config.token_size, widths[0], 3)
        self.mid = ResBlocks(widths[0], widths[0], blocks, groups)
        self.up = nn.ModuleList(
            UpLevel(widths[max(k - 1, 0)], width, blocks, groups, double=k < len(widths) - 1)
            for k, width in enumerate(widths)
        )
        self.norm_out = GroupNorm(groups, widths[-1])
        self.conv_out = Conv2dSame(widths[-1], config.num_channels, 3)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.mid(self.conv_in(codes))
        for level in self.up:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))  # type: ignore[no-any-return]


class ConvTokenizer(nn.Module):
    """Encoder, quantizer and decoder under the keys of the published checkpoints."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize: LookupFreeQuantizer | LookupQuantizer = (
            LookupFreeQuantizer(config) if config.quantizer_type == "lookup-free" else LookupQuantizer(config)
        )

    def encode(self, images: Tensor) -> Quantized:
        """Tokens of `images` f32 (B, 3, H, W) in [0, 1], H and W multiples of the stride."""
        return self.quantize(self.encoder(images))  # type: ignore[no-any-return]

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), not clamped, of token `indices` i64 (B, h, w) in [0, num_codes)."""
        return self.decoder(self.quantize.codes_of(indices))  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruction of `images` and their tokens."""
        quantized = self.encode(images)
        return self.decoder(quantized.codes), quantized
