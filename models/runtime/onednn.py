"""A generator for the CPU: its Linear layers by oneDNN, whose weights are laid out once.

Eager PyTorch gives fp32 products to MKL, which takes twice as long on AMD processors, and computes GELU in a
pass of its own. The operators are those that torch.compile uses; they stand under `torch.ops` alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.generator import Generator, MultiHeadAttention, attend


def available(dtype: torch.dtype) -> bool:
    """Whether oneDNN is in this build of PyTorch, and multiplies `dtype` on this processor."""
    built_in: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not built_in or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


class PackedLinear(nn.Module):
    """A Linear for inference, with the exact GELU behind it if `gelu`."""

    def __init__(self, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> None:
        super().__init__()
        # Not registered as buffers: a laid-out weight can be neither stored nor moved.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self._bias = bias.detach()
        self._behind: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, *self._behind)  # type: ignore[no-any-return]


class PackedAttention(nn.Module):
    """`MultiHeadAttention` for inference."""

    def __init__(self, attention: MultiHeadAttention) -> None:
        super().__init__()
        self._heads = attention.heads
        self.in_proj = PackedLinear(attention.in_proj_weight, attention.in_proj_bias)
        self.out_proj = PackedLinear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(attend(self.in_proj(x), self._heads))  # type: ignore[no-any-return]


def pack(generator: Generator) -> None:
    """Replace the layers of `generator`, whose weights are in their final precision; it can infer only."""
    _pack(generator)


def _pack(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, MultiHeadAttention):
            setattr(module, name, PackedAttention(child))
        elif isinstance(child, nn.Sequential) and [type(one) for one in child][:2] == [nn.Linear, nn.GELU]:
            child[0], child[1] = _packed(child[0], gelu=True), nn.Identity()
            _pack(child)
        elif isinstance(child, nn.Linear):
            setattr(module, name, _packed(child))
        else:
            _pack(child)


def _packed(linear: nn.Module, *, gelu: bool = False) -> PackedLinear:
    assert isinstance(linear, nn.Linear)
    return PackedLinear(linear.weight, linear.bias, gelu=gelu)
