"""Configuration of sampling: frozen, checked when built, standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from models.validation import require, require_one_of, require_positive

MASK_SCHEDULES = ("arccos", "cosine", "linear", "square", "root")
GUIDANCE_ANNEALINGS = ("none", "linear", "cosine")
GROUP_ORDERS = ("confidence", "halton")


@dataclass(frozen=True)
class SamplingConfig:
    """How pictures are drawn; names are those of the HTTP API (SPEC section 3 gives the formulas).

    A step i of S is guided where `guidance_interval` holds i / S, its end excluded, and where the annealed
    scale is above `guidance_cutoff`; other steps cost no unconditional pass. With `group_order` `halton` the
    groups settle in the order of `models/halton.py`, and `noise_temperature` has no effect.
    """

    steps: int = 64
    guidance_scale: float = 7.1
    guidance_annealing: str = "cosine"
    guidance_pow: float = 3.0
    guidance_cutoff: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    temperature: float = 1.0
    noise_temperature: float = 7.8
    mask_schedule: str = "arccos"
    group_order: str = "confidence"
    anneal_temperature: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "steps")
        require(self.guidance_scale >= 0, f"guidance_scale is {self.guidance_scale}; it must be at least 0")
        require(self.guidance_pow > 0, f"guidance_pow is {self.guidance_pow}; it must be above 0")
        require(
            self.guidance_cutoff >= 0, f"guidance_cutoff is {self.guidance_cutoff}; it must be at least 0"
        )
        require(
            len(self.guidance_interval) == 2
            and 0 <= self.guidance_interval[0] < self.guidance_interval[1] <= 1,
            f"guidance_interval is {list(self.guidance_interval)}; allowed is 0 <= start < end <= 1",
        )
        require(self.temperature > 0, f"temperature is {self.temperature}; it must be above 0")
        require(
            self.noise_temperature >= 0,
            f"noise_temperature is {self.noise_temperature}; it must be at least 0",
        )
        require_one_of(self, "mask_schedule", MASK_SCHEDULES)
        require_one_of(self, "guidance_annealing", GUIDANCE_ANNEALINGS)
        require_one_of(self, "group_order", GROUP_ORDERS)
