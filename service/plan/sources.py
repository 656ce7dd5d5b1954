"""Where the numbers of a plan come from: files, options, or what was measured for the built-in table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from models.errors import InputError
from models.sampling_config import SamplingConfig
from service.plan import measured, part_costs, step_times
from service.plan.part_costs import PartCosts
from service.plan.step_times import StepTimes, Times
from service.settings import Settings


def times_from(bench: Path | None, steps: Times | None, decodes: Times | None) -> StepTimes:
    """Step times of a file, of options, or the built-in ones of a CPU. Raises InputError."""
    if bench is not None and (steps or decodes):
        raise InputError(
            "--bench is given with --step-times or --decode-times; measured or assumed, not both"
        )
    if bench is not None:
        return step_times.load(bench)
    if not steps and not decodes:
        return measured.FRUIT
    if not steps or not decodes:
        raise InputError("--step-times and --decode-times belong together: 2:9ms,32:30ms and 1:6ms,16:70ms")
    slots: int = Settings.model_fields["slots"].default
    return StepTimes.assumed(steps, decodes, SamplingConfig(), slots)


def adapted(times: StepTimes, *, guidance_scale: float | None, slots: int) -> StepTimes:
    """The same for pictures of another guidance scale. Raises InputError where `slots` were not measured."""
    if 2 * slots > times.most_rows:
        raise InputError(
            f"{slots} slots make steps of up to {2 * slots} rows, and the step times end at "
            f"{times.most_rows}; take fewer --slots, or measure more: maskbit bench steps --slots"
        )
    if guidance_scale is None:
        return times
    return replace(times, sampling=replace(times.sampling, guidance_scale=guidance_scale))


def costs_from(parts: Path | None) -> PartCosts:
    """Part costs of a file, or the built-in ones. Raises InputError."""
    return measured.PARTS if parts is None else part_costs.load(parts)
