"""Learning-rate schedules: functions of the optimizer step (SPEC section 4)."""

import math


def cosine_with_minimum(step: int, base: float, warmup_steps: int, total_steps: int) -> float:
    """Learning rate at 0-based `step`: linear from 0 over the warm-up, then a cosine down to base/10."""
    if step < warmup_steps:
        return base * step / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return base * (0.1 + 0.9 * (1 + math.cos(math.pi * min(progress, 1.0))) / 2)
