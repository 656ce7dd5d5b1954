"""Arithmetic and memory traffic that the networks need, counted from their configurations.

A product of matrices (p, i) x (i, o) is 2 p i o floating-point operations: a Linear over p positions, or a
k x k convolution to p pixels, where i is k^2 times its input channels. Attention of length T and width D is
two such products, 4 T^2 D. With N tokens, T = N + 1 (the class) and MLP width M, a row of the generator costs

    2 N K D  +  depth (8 T D^2 + 4 T D M + 4 T^2 D)  +  2 T D^2  +  2 N D m 2^b

where the first term, the projection of K bits, is absent when groups are embedded. Everything else (norms,
activations, softmax, the draw) is left out, as `torch.utils.flop_counter` leaves it out.

Traffic is the least that products and convolutions have to move: weights once a call, and for every row the
inputs and outputs of each. What is kept in caches or fused costs less, what runs between them costs more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from models.config import GeneratorConfig, TokenizerConfig


@dataclass(frozen=True)
class Work:
    """Of one row: `flops`, `moved` numbers read and written; and `weights`, numbers read once a call."""

    flops: int
    weights: int
    moved: int

    def bytes(self, rows: int, size: int) -> int:
        """Bytes that a call with `rows` rows of `size`-byte numbers moves at least."""
        return size * (self.weights + rows * self.moved)


def _sum(parts: Iterable[Work]) -> Work:
    listed = list(parts)
    return Work(
        sum(one.flops for one in listed), sum(one.weights for one in listed), sum(one.moved for one in listed)
    )


def _linear(positions: int, inputs: int, outputs: int) -> Work:
    return Work(2 * positions * inputs * outputs, inputs * outputs, positions * (inputs + outputs))


def _attention(length: int, width: int) -> Work:
    return Work(4 * length**2 * width, 0, 4 * length * width)


def _convolution(side: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> Work:
    pixels, weights = (side // stride) ** 2, kernel**2 * inputs * outputs
    return Work(2 * pixels * weights, weights, side**2 * inputs + pixels * outputs)


def generator_work(config: GeneratorConfig) -> Work:
    """Of one row of the generator; a guided picture needs two rows a step."""
    return _sum(_generator(config))


def _generator(config: GeneratorConfig) -> Iterator[Work]:
    tokens, width = config.num_tokens, config.hidden_dim
    length = tokens + 1
    if config.model_cls == "lfq_bert":
        yield _linear(tokens, config.bits, width)
    for _ in range(config.depth):
        yield _linear(length, width, 3 * width)
        yield _attention(length, width)
        yield _linear(length, width, width)
        yield _linear(length, width, config.mlp_dim)
        yield _linear(length, config.mlp_dim, width)
    yield _linear(length, width, width)
    yield _linear(tokens, width, config.codebook_splits * config.group_codes)


def encoder_work(config: TokenizerConfig, image_size: int) -> Work | None:
    """Of one picture of `image_size` pixels a side; None for `taming`, which is not counted."""
    return None if config.model_class == "taming" else _sum(_encoder(config, image_size))


def decoder_work(config: TokenizerConfig, image_size: int) -> Work | None:
    """Of one picture of `image_size` pixels a side; None for `taming`, which is not counted."""
    return None if config.model_class == "taming" else _sum(_decoder(config, image_size))


def _blocks(side: int, inputs: int, outputs: int, count: int) -> Iterator[Work]:
    for number in range(count):
        yield _convolution(side, inputs if number == 0 else outputs, outputs)
        yield _convolution(side, outputs, outputs)
        if number == 0 and inputs != outputs:
            yield _convolution(side, outputs, outputs, kernel=1)


def _encoder(config: TokenizerConfig, side: int) -> Iterator[Work]:
    width = config.hidden_channels
    yield _convolution(side, config.num_channels, width)
    for level, multiplier in enumerate(config.channel_mult):
        before, width = width, config.hidden_channels * multiplier
        yield from _blocks(side, before, width, config.num_res_blocks)
        if level < config.num_resolutions - 1:
            if config.sample_with_conv:
                yield _convolution(side, width, width, stride=2)
            side //= 2
    yield from _blocks(side, width, width, config.num_res_blocks)
    yield _convolution(side, width, config.token_size, kernel=1)
    if config.quantizer_type == "lookup":
        yield _linear(side**2, config.token_size, config.codebook_size)


def _decoder(config: TokenizerConfig, image_size: int) -> Iterator[Work]:
    side, count = image_size // config.stride, config.num_res_blocks_decoder or config.num_res_blocks
    widths = [config.hidden_channels * multiplier for multiplier in reversed(config.channel_mult)]
    width = widths[0]
    yield _convolution(side, config.token_size, width)
    yield from _blocks(side, width, width, count)
    for level, wanted in enumerate(widths):
        before, width = width, wanted
        yield from _blocks(side, before, width, count)
        if level < config.num_resolutions - 1:
            side *= 2
            yield _convolution(side, width, width)
    yield _convolution(side, width, config.num_channels)
