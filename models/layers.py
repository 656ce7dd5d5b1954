"""Convolutional building blocks under the published key names (torch)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow "SAME" padding of one axis of `size` pixels: (before, after), the smaller half first."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Conv2dSame(nn.Conv2d):
    """Convolution with "SAME" padding, which is asymmetric when the stride is 2."""

    def forward(self, x: Tensor) -> Tensor:
        (kernel_h, kernel_w), (stride_h, stride_w) = self.kernel_size, self.stride
        top, bottom = same_padding(x.shape[-2], kernel_h, stride_h)
        left, right = same_padding(x.shape[-1], kernel_w, stride_w)
        if top == bottom and left == right:
            # The convolution pads by itself: one pass over memory less than padding first.
            return F.conv2d(x, self.weight, self.bias, self.stride, (top, left))
        return F.conv2d(F.pad(x, (left, right, top, bottom)), self.weight, self.bias, self.stride)


class GroupNorm(nn.GroupNorm):
    """GroupNorm with the eps of the published networks."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels, eps=1e-6)


def _in_place() -> bool:
    # A compiler plans memory by itself, and the question for the mode would cut its graph in two.
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()


def silu(x: Tensor) -> Tensor:
    """SiLU of `x`, which is of no more use to the caller: in inference mode the result takes its place.

    On a CPU half of the time of such a pass goes into touching new memory.
    """
    return F.silu(x, inplace=_in_place())


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y, where `x` is of no more use to the caller: see `silu`."""
    return x.add_(y) if _in_place() else x + y


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut.

    Where the channel counts differ, the 1x1 shortcut reads the block's own result instead of its input. The
    published weights were trained with that, so it is part of the architecture.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels)
        self.conv1 = Conv2dSame(in_channels, out_channels, 3, bias=False)
        self.norm2 = GroupNorm(groups, out_channels)
        self.conv2 = Conv2dSame(out_channels, out_channels, 3, bias=False)
        self.nin_shortcut = (
            None if in_channels == out_channels else Conv2dSame(out_channels, out_channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        h = self.conv2(silu(self.norm2(h)))
        return add(h, x if self.nin_shortcut is None else self.nin_shortcut(h))


class ResBlocks(nn.Module):
    """`count` residual blocks in a row, under the key `res_blocks`."""

    def __init__(self, in_channels: int, out_channels: int, count: int, groups: int) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(
            ResBlock(in_channels if j == 0 else out_channels, out_channels, groups) for j in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.res_blocks:
            x = block(x)
        return x


class DownLevel(ResBlocks):
    """Residual blocks, then (but for the last level) a halving by strided convolution or average pooling."""

    def __init__(
        self, in_channels: int, out_channels: int, count: int, groups: int, *, halve: bool, with_conv: bool
    ) -> None:
        super().__init__(in_channels, out_channels, count, groups)
        self.halve = halve
        self.down_conv = Conv2dSame(out_channels, out_channels, 3, stride=2) if halve and with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if self.down_conv is not None:
            return self.down_conv(x)  # type: ignore[no-any-return]
        return F.avg_pool2d(x, 2) if self.halve else x


class UpLevel(ResBlocks):
    """Residual blocks, then (but for the last level) nearest doubling and a convolution."""

    def __init__(self, in_channels: int, out_channels: int, count: int, groups: int, *, double: bool) -> None:
        super().__init__(in_channels, out_channels, count, groups)
        self.upsample_conv = Conv2dSame(out_channels, out_channels, 3) if double else None

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if self.upsample_conv is None:
            return x
        return self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


def count_parameters(module: nn.Module) -> int:
    """Number of scalar parameters of `module`."""
    return sum(p.numel() for p in module.parameters())
