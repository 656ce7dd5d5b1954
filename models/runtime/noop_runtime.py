"""A runtime without a network: deterministic answers at once, to measure and break the service around it."""

from __future__ import annotations

import numpy as np

from models.bundle import Bundle
from models.config import GeneratorConfig
from models.errors import RuntimeUnavailable
from models.runtime.base import Integers, Pixels, StepBatch, StepResult


class NoopRuntime:
    """Draws the category that the uniform points at, masks again where the confidence uniform is smallest."""

    name = "noop"
    precision = "fp32"
    device_name = "cpu"
    buckets: tuple[int, ...] = (1,)

    def __init__(self, bundle: Bundle) -> None:
        self.manifest = bundle.manifest

    def encode(self, images: Pixels) -> Integers:
        """Token indices i64 (B, h, w): the mean of each patch, spread over the codes."""
        batch, side, stride = len(images), self.manifest.grid, self.manifest.tokenizer.stride
        patches = images.reshape(batch, side, stride, side, stride, 3)
        means = patches.astype(np.int64).mean((2, 4, 5))
        indices: Integers = (means / 256 * self.manifest.tokenizer.num_codes).astype(np.int64)
        return indices

    def decode(self, indices: Integers) -> Pixels:
        """Pictures u8 (B, H, W, 3): grey patches."""
        grey = (indices * 256 // self.manifest.tokenizer.num_codes).astype(np.uint8)
        stride = self.manifest.tokenizer.stride
        return np.repeat(grey.repeat(stride, 1).repeat(stride, 2)[..., None], 3, axis=3)

    def step(self, batch: StepBatch) -> StepResult:
        """One step by the same protocol as a network's."""
        config = self._generator()
        masked = batch.tokens == config.group_codes
        guess = (batch.category_uniforms * config.group_codes).astype(np.int64)
        drawn = np.where(masked, guess, batch.tokens)
        confidence = np.where(masked, batch.confidence_uniforms, np.inf).reshape(len(batch), -1)
        ranks = confidence.argsort(1, kind="stable").argsort(1, kind="stable").reshape(drawn.shape)
        again = ranks < batch.mask_count[:, None, None]
        return StepResult(np.where(again, config.group_codes, drawn), drawn)

    def _generator(self) -> GeneratorConfig:
        if self.manifest.generator is None:
            raise RuntimeUnavailable("this bundle has no generator: it tokenizes and detokenizes only")
        return self.manifest.generator

    def memory_bytes(self) -> int:
        """None."""
        return 0

    def warm_up(self) -> None:
        """Nothing to warm."""
