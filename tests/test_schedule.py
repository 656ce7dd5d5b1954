import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InputError
from models.halton import RANK_NOISE_TEMPERATURE
from models.sampling_config import GUIDANCE_ANNEALINGS, MASK_SCHEDULES, SamplingConfig
from models.schedule import forward_passes, guidance_scale, mask_ratio, plan_steps

PUBLISHED_GROUPS = 512  # 256 tokens of two groups


def torch_ratio(progress: torch.Tensor, schedule: str) -> torch.Tensor:
    """The mask ratio in PyTorch's float32, in which the published pictures were drawn."""
    ratios = {
        "arccos": torch.acos(progress) / (math.pi / 2),
        "cosine": torch.cos(progress * (math.pi / 2)),
        "linear": 1 - progress,
        "square": 1 - progress**2,
        "root": 1 - progress**0.5,
    }
    return ratios[schedule].clamp(1e-6, 1)


@pytest.mark.parametrize("schedule", MASK_SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 16, 48, 64, 100, 128, 256])
def test_mask_counts_are_those_of_pytorchs_float32(schedule: str, steps: int) -> None:
    masked = PUBLISHED_GROUPS
    for step, plan in enumerate(plan_steps(SamplingConfig(steps=steps, mask_schedule=schedule), masked)):
        progress = torch.tensor(float(step + 1)) / steps
        wanted = int(torch.floor(torch_ratio(progress, schedule) * PUBLISHED_GROUPS))
        masked = max(min(wanted, masked - 1), 1) if masked > 1 else 0
        assert plan.mask_count == masked


def test_the_ratio_is_rounded_in_float32() -> None:
    """SPEC section 3: cosine at 2/3 falls just short of one half, so that one group fewer stays masked."""
    assert float(mask_ratio(np.float32(2) / np.float32(3), "cosine")) == pytest.approx(0.49999997, abs=1e-9)
    plans = plan_steps(SamplingConfig(steps=3, mask_schedule="cosine"), 32)
    assert [plan.mask_count for plan in plans] == [27, 15, 1]


@given(st.sampled_from(MASK_SCHEDULES), st.integers(1, 40), st.integers(0, 200))
def test_every_step_settles_a_group_until_none_is_left(schedule: str, steps: int, more: int) -> None:
    groups = steps + more
    plans = plan_steps(SamplingConfig(steps=steps, mask_schedule=schedule), groups)
    counts = [groups, *(plan.mask_count for plan in plans)]
    assert len(plans) == steps
    assert all(after < before or before == after == 0 for before, after in pairwise(counts))
    assert counts[-1] <= 1


@pytest.mark.parametrize("steps", [33, 64])
def test_more_steps_than_groups_is_an_error(steps: int) -> None:
    with pytest.raises(InputError, match=rf"steps is {steps}.* 32 bit groups allows 1 to 32"):
        plan_steps(SamplingConfig(steps=steps), 32)


def test_as_many_steps_as_groups_settle_one_group_each() -> None:
    plans = plan_steps(SamplingConfig(steps=32, mask_schedule="linear"), 32)
    assert [plan.mask_count for plan in plans] == [*range(31, 0, -1), 0]


def test_guidance_follows_its_annealing() -> None:
    """Checked with numbers of our own choice: a quarter and half of the way, power 2."""
    configs = {
        name: SamplingConfig(steps=8, guidance_scale=6.0, guidance_annealing=name, guidance_pow=2.0)
        for name in GUIDANCE_ANNEALINGS
    }
    assert [guidance_scale(configs["none"], step) for step in (0, 2, 7)] == [6.0] * 3
    assert [guidance_scale(configs["linear"], step) for step in (0, 2, 4)] == [0.0, 1.5, 3.0]
    cosine = [guidance_scale(configs["cosine"], step) for step in (0, 2, 4)]
    # cos(pi/16) and cos(pi/4)
    assert cosine == pytest.approx([0.0, 3 * (1 - 0.9807852804), 3 * (1 - 0.7071067812)])


@pytest.mark.parametrize("annealing", GUIDANCE_ANNEALINGS)
def test_scale_zero_never_needs_an_unconditional_pass(annealing: str) -> None:
    config = SamplingConfig(guidance_scale=0.0, guidance_annealing=annealing)
    assert {plan.guidance_scale for plan in plan_steps(config, PUBLISHED_GROUPS)} == {0.0}


def test_steps_up_to_the_cutoff_are_not_guided_and_the_others_as_before() -> None:
    config = SamplingConfig(steps=8, guidance_scale=8.0, guidance_annealing="linear")
    plain = [guidance_scale(config, step) for step in range(8)]
    assert plain == [0, 1, 2, 3, 4, 5, 6, 7]
    for cutoff, wanted in ((0.0, plain), (2.0, [0, 0, 0, *plain[3:]]), (1.9, [0, 0, *plain[2:]])):
        cut = replace(config, guidance_cutoff=cutoff)
        assert [plan.guidance_scale for plan in plan_steps(cut, PUBLISHED_GROUPS)] == wanted


def test_only_steps_whose_progress_is_in_the_interval_are_guided() -> None:
    """The start belongs to the interval, the end does not: neighbouring intervals share no step."""
    config = SamplingConfig(steps=10, guidance_scale=2.0, guidance_annealing="none")

    def guided(start: float, end: float) -> list[int]:
        part = replace(config, guidance_interval=(start, end))
        return [step for step in range(10) if guidance_scale(part, step) == 2.0]

    assert guided(0.0, 1.0) == list(range(10))
    assert guided(0.3, 0.7) == [3, 4, 5, 6]
    assert guided(0.25, 0.65) == [3, 4, 5, 6]
    assert guided(0.0, 0.3) + guided(0.3, 0.7) + guided(0.7, 1.0) == list(range(10))


@pytest.mark.parametrize(
    ("changes", "unconditional"),
    [
        ({}, 63),  # cosine annealing starts at 0
        ({"guidance_scale": 0.0}, 0),
        ({"guidance_annealing": "none"}, 64),
        ({"guidance_annealing": "none", "guidance_interval": (0.25, 0.75)}, 32),
        # 7.1 * (1 - cos(pi * x^3)) / 2 is above 0.1 from x^3 = 0.0757 or x = 0.4230, steps 28 to 63
        ({"guidance_cutoff": 0.1}, 36),
        ({"guidance_cutoff": 0.1, "guidance_interval": (0.0, 0.5)}, 4),
    ],
)
def test_forward_passes_are_counted(changes: dict[str, Any], unconditional: int) -> None:
    config = SamplingConfig(**changes)
    passes = forward_passes(config)
    assert (passes.conditional, passes.unconditional) == (64, unconditional)
    assert (passes.total, passes.saved) == (64 + unconditional, 64 - unconditional)
    plans = plan_steps(config, PUBLISHED_GROUPS)
    assert passes.unconditional == sum(plan.guidance_scale != 0 for plan in plans)


def test_a_fixed_order_changes_nothing_but_the_noise_temperature() -> None:
    config = SamplingConfig(steps=16)
    plans = plan_steps(config, PUBLISHED_GROUPS)
    ordered = plan_steps(replace(config, group_order="halton"), PUBLISHED_GROUPS)
    assert ordered == tuple(replace(plan, noise_temperature=RANK_NOISE_TEMPERATURE) for plan in plans)


def test_temperatures_fall_with_progress() -> None:
    plain = plan_steps(SamplingConfig(steps=4, temperature=1.2, noise_temperature=8.0), 64)
    assert [plan.temperature for plan in plain] == [1.2] * 4
    assert [plan.noise_temperature for plan in plain] == [6.0, 4.0, 2.0, 0.0]
    annealed = plan_steps(SamplingConfig(steps=4, temperature=1.2, anneal_temperature=True), 64)
    assert [plan.temperature for plan in annealed] == pytest.approx([1.1, 0.9, 0.7, 0.5])
