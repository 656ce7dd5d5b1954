"""One sampling step as a pure function of logits and noise (torch, SPEC section 3), and sample(), its loop.

What depends on the step number comes in from `schedule.py`, what is random from `noise.py`: rows at different
steps, of different step counts, share one call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.config import GeneratorConfig
from models.halton import group_ranks, ordered_uniforms
from models.sampling_config import SamplingConfig
from models.schedule import plan_steps

LogitsFn = Callable[
    [Tensor, Tensor], Tensor
]  # (tokens i64 (B, N, m), labels i64 (B,)) -> logits (B, N, m, V)


@dataclass(frozen=True)
class StepInputs:
    """Per row, as tensors of one device: see `runtime.base.StepBatch` for the meaning and ranges."""

    tokens: Tensor
    labels: Tensor
    guidance_scale: Tensor
    temperature: Tensor
    noise_temperature: Tensor
    mask_count: Tensor
    category_uniforms: Tensor
    confidence_uniforms: Tensor


def guided_logits(
    logits_fn: LogitsFn, tokens: Tensor, labels: Tensor, scales: Tensor, guided: int, no_class: int
) -> Tensor:
    """Logits after classifier-free guidance; only the first `guided` rows cost an unconditional pass.

    Both passes of all rows are one call of `logits_fn` with B + guided rows.
    """
    batch = tokens.shape[0]
    if guided == 0:
        return logits_fn(tokens, labels).float()
    unconditional = labels.new_full((guided,), no_class)
    both = logits_fn(torch.cat([tokens, tokens[:guided]]), torch.cat([labels, unconditional])).float()
    conditional = both[:batch]
    steered = conditional[:guided] + scales[:guided, None, None, None] * (conditional[:guided] - both[batch:])
    return torch.cat([steered, conditional[guided:]])


def draw(logits: Tensor, temperature: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Categories i64 (B, N, m) by inverse CDF and their log-probabilities, from `logits` (B, N, m, V).

    The category is the number of those whose normalised cumulative probability is at most the uniform.
    """
    log_probabilities = torch.log_softmax(logits / temperature[:, None, None, None], dim=-1)
    cumulative = log_probabilities.exp().cumsum(-1)
    below = cumulative / cumulative[..., -1:] <= uniforms[..., None]
    # The last one is never below, for its sum is 1.
    drawn = below[..., :-1].sum(-1)
    return drawn, log_probabilities.gather(-1, drawn[..., None]).squeeze(-1)


def remask(confidence: Tensor, count: Tensor) -> Tensor:
    """Mask bool (B, N, m) of the `count` i64 (B,) least confident groups, ties of the last included."""
    flat = confidence.flatten(1)
    ordered = flat.sort(dim=1).values
    threshold = ordered.gather(1, torch.where(count > 0, count - 1, 0)[:, None])
    chosen = (flat <= threshold) & (count > 0)[:, None]
    return chosen.view_as(confidence)


def step(
    logits_fn: LogitsFn, inputs: StepInputs, guided: int, mask_id: int, no_class: int
) -> tuple[Tensor, Tensor]:
    """One step: (next tokens, drawn groups), both i64 (B, N, m).

    Rows whose guidance scale is not 0 come first; `guided` is their number. The drawn groups of a row's last
    step are its result.
    """
    logits = guided_logits(logits_fn, inputs.tokens, inputs.labels, inputs.guidance_scale, guided, no_class)
    return decide(logits, inputs, mask_id)


def decide(logits: Tensor, inputs: StepInputs, mask_id: int) -> tuple[Tensor, Tensor]:
    """What a step makes of its `logits` f32 (B, N, m, V), guidance applied: as `step` returns it."""
    drawn, log_probability = draw(logits, inputs.temperature, inputs.category_uniforms)
    masked = inputs.tokens == mask_id
    drawn = torch.where(masked, drawn, inputs.tokens)
    gumbel = -torch.log(-torch.log(inputs.confidence_uniforms))
    confidence = log_probability + gumbel * inputs.noise_temperature[:, None, None]
    confidence = torch.where(masked, confidence, torch.inf)
    return torch.where(remask(confidence, inputs.mask_count), mask_id, drawn), drawn


@torch.inference_mode()
def sample(
    logits_fn: LogitsFn, generator: GeneratorConfig, config: SamplingConfig, labels: Tensor, seeds: list[int]
) -> Tensor:
    """Groups i64 (B, N, m) of one picture per label in [0, nclass) and seed, on the device of `labels`."""
    device = labels.device
    shape = (generator.num_tokens, generator.codebook_splits)
    mask_id, rows = generator.group_codes, len(seeds)
    tokens = torch.full((rows, *shape), mask_id, device=device)
    drawn = tokens
    ranks = [group_ranks(config, generator, seed) for seed in seeds]
    for number, plan in enumerate(plan_steps(config, shape[0] * shape[1])):
        noise = [ordered_uniforms(seed, number, shape, own) for seed, own in zip(seeds, ranks, strict=True)]
        categories, confidences = (
            torch.from_numpy(np.stack(part)).to(device) for part in zip(*noise, strict=True)
        )
        inputs = StepInputs(
            tokens=tokens,
            labels=labels,
            guidance_scale=torch.full((rows,), plan.guidance_scale, device=device),
            temperature=torch.full((rows,), plan.temperature, device=device),
            noise_temperature=torch.full((rows,), plan.noise_temperature, device=device),
            mask_count=torch.full((rows,), plan.mask_count, device=device),
            category_uniforms=categories,
            confidence_uniforms=confidences,
        )
        guided = rows if plan.guidance_scale != 0 else 0
        tokens, drawn = step(logits_fn, inputs, guided, mask_id, generator.nclass)
    return drawn
