"""Everything in sampling that depends on the step number, computed on the host (NumPy, SPEC section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from models.errors import InputError
from models.halton import RANK_NOISE_TEMPERATURE
from models.sampling_config import SamplingConfig


def mask_ratio(progress: np.float32, schedule: str) -> np.float32:
    """Share of groups that stay masked at `progress` in (0, 1], in float32 like the published code."""
    one = np.float32(1)
    if schedule == "arccos":
        ratio = np.arccos(progress) / np.float32(math.pi / 2)
    elif schedule == "cosine":
        ratio = np.cos(progress * np.float32(math.pi / 2))
    elif schedule == "linear":
        ratio = one - progress
    elif schedule == "square":
        ratio = one - progress * progress
    elif schedule == "root":
        ratio = one - np.sqrt(progress)
    else:
        raise InputError(f"mask schedule {schedule!r} is unknown")
    return np.float32(np.clip(ratio, np.float32(1e-6), one))


def guidance_scale(config: SamplingConfig, step: int) -> float:
    """Guidance scale s_i of 0-based `step`; 0 means that the step needs no unconditional pass."""
    share = step / config.steps
    start, end = config.guidance_interval
    if not start <= share < end:
        return 0.0
    scale = config.guidance_scale * _annealing(config, share)
    return scale if scale > config.guidance_cutoff else 0.0


def _annealing(config: SamplingConfig, share: float) -> float:
    if config.guidance_annealing == "none":
        return 1.0
    if config.guidance_annealing == "linear":
        return share
    return (1 - math.cos(math.pi * share**config.guidance_pow)) / 2


@dataclass(frozen=True)
class ForwardPasses:
    """Rows that one picture costs the network: one at each step, and one more at each guided step."""

    conditional: int
    unconditional: int

    @property
    def total(self) -> int:
        """All rows."""
        return self.conditional + self.unconditional

    @property
    def saved(self) -> int:
        """Rows that guidance at every step would cost more."""
        return self.conditional - self.unconditional


def forward_passes(config: SamplingConfig) -> ForwardPasses:
    """What one picture costs with these parameters."""
    guided = sum(guidance_scale(config, step) != 0 for step in range(config.steps))
    return ForwardPasses(conditional=config.steps, unconditional=guided)


@dataclass(frozen=True)
class StepPlan:
    """The numbers of one step of one picture; `mask_count` groups are masked again after it."""

    guidance_scale: float
    temperature: float
    noise_temperature: float
    mask_count: int


def at_most(config: SamplingConfig, groups: int) -> SamplingConfig:
    """`config` with no more steps than `groups`, each of which settles at least one."""
    return config if config.steps <= groups else replace(config, steps=groups)


def plan_steps(config: SamplingConfig, groups: int) -> tuple[StepPlan, ...]:
    """All steps of a picture of which `groups` bit groups are masked before the first: of a new one, N*m."""
    if config.steps > groups:
        raise InputError(f"steps is {config.steps}; a picture of {groups} bit groups allows 1 to {groups}")
    plans: list[StepPlan] = []
    masked = groups
    for step in range(config.steps):
        progress = np.float32(step + 1) / np.float32(config.steps)
        left = float(np.float32(1) - progress)
        wanted = math.floor(mask_ratio(progress, config.mask_schedule) * np.float32(groups))
        # With one group left nothing is masked again, so that the last groups are settled.
        masked = 0 if masked <= 1 else min(max(wanted, 1), masked - 1)
        plans.append(
            StepPlan(
                guidance_scale=guidance_scale(config, step),
                temperature=0.5 + 0.8 * left if config.anneal_temperature else config.temperature,
                noise_temperature=_noise_temperature(config, left),
                mask_count=masked,
            )
        )
    return tuple(plans)


def _noise_temperature(config: SamplingConfig, left: float) -> float:
    return RANK_NOISE_TEMPERATURE if config.group_order == "halton" else config.noise_temperature * left
