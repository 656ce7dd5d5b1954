"""Operators that are translated by hand: PyTorch's way leaves shapes open that are known before a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """By PyTorch's operator, as `torch.onnx.export` takes them."""
    return {
        torch.ops.aten.scaled_dot_product_attention.default: _attention,
        torch.ops.aten.sort.default: _sort,
    }


def _attention(query: Any, key: Any, value: Any) -> Any:
    """(B, heads, N, width) each; the transposition of the keys is one operator, which compilers fuse."""
    import onnx_ir
    from onnxscript import opset20

    op: Any = opset20  # its annotations are for eager tensors
    scale = op.Constant(value=onnx_ir.tensor(1 / math.sqrt(query.shape[-1]), dtype=query.dtype))
    scores = op.MatMul(op.Mul(query, scale), op.Transpose(key, perm=[0, 1, 3, 2]))
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def _sort(values: Any, dim: int = -1, descending: bool = False) -> Any:
    """By TopK, whose k TensorRT wants to know beforehand."""
    from onnxscript import opset20

    op: Any = opset20
    size = op.Constant(value_ints=[values.shape[dim]])
    return op.TopK(values, size, axis=dim, largest=int(descending), sorted=1)
