"""What every runtime offers: NumPy in, NumPy out, no state between calls."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Pixels = NDArray[np.uint8]

# Rows are work on a CPU and nearly free on a GPU that is not full: hence finer steps for the former.
CPU_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
CUDA_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STRICT_BUCKET = 4
TOKENIZER_ROWS = 32  # at a time on a GPU, where a picture takes as much memory as many rows of a generator


@dataclass(frozen=True)
class StepBatch:
    """Inputs of one sampling step for B rows, which may be at different steps of different pictures.

    tokens               i64 (B, N, m), values in [0, 2^b], 2^b = masked
    labels               i64 (B,), class ids
    guidance_scale       f32 (B,), 0 = the row needs no unconditional pass
    temperature          f32 (B,), of the softmax, > 0
    noise_temperature    f32 (B,), factor of the Gumbel noise, >= 0; 2^64 where halton.py orders the groups,
                         hence confidence is computed in f32, whatever the network's precision
    mask_count           i64 (B,), groups to mask again after the step, fewer than are masked before it
    category_uniforms    f32 (B, N, m) in (0, 1)
    confidence_uniforms  f32 (B, N, m) in (0, 1)
    """

    tokens: Integers
    labels: Integers
    guidance_scale: Floats
    temperature: Floats
    noise_temperature: Floats
    mask_count: Integers
    category_uniforms: Floats
    confidence_uniforms: Floats

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, order: Integers) -> StepBatch:
        """The rows `order`, in that order."""
        return StepBatch(*(getattr(self, field.name)[order] for field in fields(self)))


@dataclass(frozen=True)
class StepResult:
    """`tokens` i64 (B, N, m) for the next step, `drawn` i64 (B, N, m) before re-masking: a last result."""

    tokens: Integers
    drawn: Integers


class Runtime(Protocol):
    """A loaded model. Calls are made from one thread at a time."""

    @property
    def name(self) -> str:
        """`torch`, `onnx`, …, for metrics and reports."""

    @property
    def precision(self) -> str:
        """Arithmetic of the generator: `fp32`, `bf16` or `fp16`."""

    @property
    def device_name(self) -> str:
        """`cpu`, `cuda:0`, …"""

    @property
    def buckets(self) -> tuple[int, ...]:
        """Row counts that a network call is padded to, ascending."""

    def encode(self, images: Pixels) -> Integers:
        """Token indices i64 (B, h, w) of pictures u8 (B, H, W, 3)."""

    def decode(self, indices: Integers) -> Pixels:
        """Pictures u8 (B, H, W, 3) of token indices i64 (B, h, w)."""

    def step(self, batch: StepBatch) -> StepResult:
        """One sampling step for all rows of `batch`."""

    def memory_bytes(self) -> int:
        """Accelerator memory that the model holds; 0 without an accelerator."""

    def warm_up(self) -> None:
        """Run every bucket once, so that the first request meets no slow start."""


def bucket_for(rows: int, buckets: tuple[int, ...]) -> int:
    """The smallest bucket that holds `rows`, or the largest one."""
    return next((bucket for bucket in buckets if bucket >= rows), buckets[-1])
