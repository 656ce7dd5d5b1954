"""Pictures on their way from all-masked to drawn, stepped together through any runtime (NumPy)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from models import bits
from models.bits import Mask
from models.bundle import Manifest
from models.config import GeneratorConfig
from models.errors import InputError, RuntimeUnavailable
from models.halton import group_ranks, ordered_uniforms
from models.noise import Uniforms, check_seed
from models.runtime.base import Integers, Runtime, StepBatch, StepResult
from models.sampling_config import SamplingConfig
from models.schedule import StepPlan, plan_steps


@dataclass(eq=False, kw_only=True)
class Drawing:
    """One picture: `tokens` i64 (N, m) is its state before step number `step` of `plans`, then its result.

    `ranks` f32 (N, m) takes the place of every step's confidence uniforms where the order is fixed.
    """

    label: int
    seed: int
    plans: Sequence[StepPlan]
    tokens: Integers
    ranks: Uniforms | None = None
    step: int = 0

    @classmethod
    def start(
        cls,
        config: GeneratorConfig,
        sampling: SamplingConfig,
        label: int,
        seed: int,
        canvas: Integers | None = None,
        **extra: Any,
    ) -> Self:
        """A picture of class `label` on `canvas` i64 (N, m), by default all masked: see `canvas_of`.

        The steps run over the masked groups alone; the others stay as they are. Raises InputError for a
        label, seed or step count out of range.
        """
        if not 0 <= label < config.nclass:
            raise InputError(f"class {label} is unknown; allowed are 0 to {config.nclass - 1}")
        if canvas is None:
            canvas = np.full((config.num_tokens, config.codebook_splits), config.group_codes, dtype=np.int64)
        return cls(
            label=label,
            seed=check_seed(seed),
            plans=plan_steps(sampling, int((canvas == config.group_codes).sum())),
            tokens=canvas,
            ranks=group_ranks(sampling, config, seed),
            **extra,
        )

    @property
    def plan(self) -> StepPlan:
        """Numbers of the next step."""
        return self.plans[self.step]

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        return self.step == len(self.plans)

    @property
    def steps_left(self) -> int:
        """Steps that this picture still needs."""
        return len(self.plans) - self.step


def canvas_of(config: GeneratorConfig, indices: Integers, mask: Mask) -> Integers:
    """Groups i64 (N, m) of the tokens `indices` i64 (h, w), those of the tokens in `mask` (h, w) masked.

    Raises InputError for other shapes, and for indices that are none of the model's.
    """
    shape = (config.grid, config.grid)
    if indices.shape != shape or mask.shape != shape:
        raise InputError(f"tokens are {indices.shape} and their mask is {mask.shape}; both must be {shape}")
    groups = bits.split_groups(indices, config.bits, config.codebook_splits)
    return np.where(mask[..., None], config.group_codes, groups).reshape(config.num_tokens, -1)


def step_batch(drawings: Sequence[Drawing]) -> StepBatch:
    """The runtime's inputs for the next step; every picture's noise is that of its own seed and step."""
    noise = [ordered_uniforms(one.seed, one.step, one.tokens.shape, one.ranks) for one in drawings]
    plans = [one.plan for one in drawings]
    return StepBatch(
        tokens=np.stack([one.tokens for one in drawings]),
        labels=np.array([one.label for one in drawings], dtype=np.int64),
        guidance_scale=np.array([plan.guidance_scale for plan in plans], dtype=np.float32),
        temperature=np.array([plan.temperature for plan in plans], dtype=np.float32),
        noise_temperature=np.array([plan.noise_temperature for plan in plans], dtype=np.float32),
        mask_count=np.array([plan.mask_count for plan in plans], dtype=np.int64),
        category_uniforms=np.stack([category for category, _ in noise]),
        confidence_uniforms=np.stack([confidence for _, confidence in noise]),
    )


def advance(runtime: Runtime, drawings: Sequence[Drawing]) -> Integers:
    """One step of every picture; returns the groups i64 (B, N, m) that were drawn, before re-masking."""
    result = runtime.step(step_batch(drawings))
    settle(drawings, result)
    return result.drawn


def settle(drawings: Sequence[Drawing], result: StepResult) -> None:
    """Take what a runtime made of `step_batch(drawings)`."""
    for one, tokens, drawn in zip(drawings, result.tokens, result.drawn, strict=True):
        one.step += 1
        one.tokens = drawn if one.finished else tokens


def grids_of(manifest: Manifest, groups: Integers) -> Integers:
    """Token indices i64 (B, h, w) of drawn `groups` i64 (B, N, m)."""
    return bits.join_groups(groups, manifest.tokenizer.bits).reshape(-1, manifest.grid, manifest.grid)


def generator_of(manifest: Manifest) -> GeneratorConfig:
    """The generator's configuration; RuntimeUnavailable when the bundle has none."""
    if manifest.generator is None:
        raise RuntimeUnavailable(
            f"the bundle {manifest.name} has no generator: it tokenizes and detokenizes only"
        )
    return manifest.generator


def draw(
    runtime: Runtime,
    manifest: Manifest,
    sampling: SamplingConfig,
    labels: Sequence[int],
    seeds: Sequence[int],
    on_step: Callable[[int], None] = lambda _: None,
) -> Integers:
    """Token indices i64 (B, h, w) of one picture per label and seed, drawn in one batch.

    `on_step` hears how many steps are done.
    """
    config = generator_of(manifest)
    drawings = [
        Drawing.start(config, sampling, label, seed) for label, seed in zip(labels, seeds, strict=True)
    ]
    for step in range(sampling.steps):
        advance(runtime, drawings)
        on_step(step + 1)
    return grids_of(manifest, np.stack([one.tokens for one in drawings]))
