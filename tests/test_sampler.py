"""The sampler's pure parts against loops in Python, and whole pictures with a real network."""

import math
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.config import GeneratorConfig
from models.errors import InputError
from models.generator import LfqBert
from models.halton import group_ranks, ordered_uniforms
from models.noise import Uniforms, step_uniforms
from models.sampler import StepInputs, draw, guided_logits, remask, sample, step
from models.sampling_config import GROUP_ORDERS, GUIDANCE_ANNEALINGS, MASK_SCHEDULES, SamplingConfig
from models.schedule import StepPlan, forward_passes, plan_steps

SMALL = GeneratorConfig(
    bits=4,
    hidden_dim=16,
    depth=1,
    heads=2,
    mlp_dim=16,
    codebook_splits=2,
    img_size=8,
    input_stride=2,
    nclass=3,
)
GROUPS = SMALL.num_tokens * SMALL.codebook_splits
MASK = SMALL.group_codes


@pytest.fixture(scope="module")
def network() -> LfqBert:
    """Seeded weights, made larger so that its logits differ."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = LfqBert(SMALL).eval().requires_grad_(False)
    for parameter in generator.parameters():
        parameter.mul_(8)
    return generator


def inputs_of(tokens: Tensor, plan: StepPlan, seed: int, number: int, ranks: Uniforms | None) -> StepInputs:
    """Inputs of one picture, tokens (1, N, m)."""
    categories, confidences = ordered_uniforms(seed, number, tuple(tokens.shape[1:]), ranks)
    return StepInputs(
        tokens=tokens,
        labels=torch.tensor([seed % SMALL.nclass]),
        guidance_scale=torch.tensor([plan.guidance_scale]),
        temperature=torch.tensor([plan.temperature]),
        noise_temperature=torch.tensor([plan.noise_temperature]),
        mask_count=torch.tensor([plan.mask_count]),
        category_uniforms=torch.from_numpy(categories)[None],
        confidence_uniforms=torch.from_numpy(confidences)[None],
    )


@settings(max_examples=20, deadline=None)
@given(
    schedule=st.sampled_from(MASK_SCHEDULES),
    annealing=st.sampled_from(GUIDANCE_ANNEALINGS),
    steps=st.integers(1, GROUPS),
    scale=st.sampled_from([0.0, 0.5, 4.0]),
    noise=st.sampled_from([0.5, 8.0]),
    order=st.sampled_from(GROUP_ORDERS),
    seed=st.integers(0, 2**63 - 1),
)
def test_a_picture_settles_as_planned_and_no_mask_is_left(
    network: LfqBert,
    schedule: str,
    annealing: str,
    steps: int,
    scale: float,
    noise: float,
    order: str,
    seed: int,
) -> None:
    config = SamplingConfig(
        steps=steps,
        guidance_scale=scale,
        guidance_annealing=annealing,
        noise_temperature=noise,
        mask_schedule=schedule,
        group_order=order,
    )
    ranks = group_ranks(config, SMALL, seed)
    tokens = torch.full((1, SMALL.num_tokens, SMALL.codebook_splits), MASK)
    drawn = tokens
    for number, plan in enumerate(plan_steps(config, GROUPS)):
        before = tokens
        guided = int(plan.guidance_scale != 0)
        inputs = inputs_of(tokens, plan, seed, number, ranks)
        tokens, drawn = step(network, inputs, guided, MASK, SMALL.nclass)
        kept = before != MASK
        assert torch.equal(drawn[kept], before[kept])
        assert torch.equal(tokens[kept], before[kept])
        assert int(drawn.max()) < MASK
        assert int((tokens == MASK).sum()) == plan.mask_count
        assert torch.equal(tokens[tokens != MASK], drawn[tokens != MASK])
    with torch.inference_mode():
        alone = sample(network, SMALL, config, torch.tensor([seed % SMALL.nclass]), [seed])
    assert torch.equal(alone, drawn)


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(steps=8),
        SamplingConfig(steps=8, guidance_cutoff=0.5),
        SamplingConfig(steps=8, guidance_annealing="none", guidance_interval=(0.2, 0.6)),
        SamplingConfig(steps=8, guidance_scale=0.0),
    ],
    ids=["plain", "cutoff", "interval", "unguided"],
)
def test_the_network_sees_as_many_rows_as_are_reported(network: LfqBert, config: SamplingConfig) -> None:
    rows = []

    def counting(tokens: Tensor, labels: Tensor) -> Tensor:
        rows.append(len(tokens))
        assert int((labels == SMALL.nclass).sum()) == len(tokens) - 2
        logits: Tensor = network(tokens, labels)
        return logits

    sample(counting, SMALL, config, torch.tensor([0, 1]), [5, 6])
    assert sum(rows) == 2 * forward_passes(config).total


def test_a_fixed_order_gives_pictures_of_their_seeds(network: LfqBert) -> None:
    config = SamplingConfig(steps=6, group_order="halton")
    labels = torch.tensor([0, 1])
    first = sample(network, SMALL, config, labels, [5, 6])
    assert torch.equal(sample(network, SMALL, replace(config, noise_temperature=0.0), labels, [5, 6]), first)
    assert torch.equal(sample(network, SMALL, config, labels[1:], [6])[0], first[1])
    assert not torch.equal(sample(network, SMALL, SamplingConfig(steps=6), labels, [5, 6]), first)


def test_more_steps_than_groups_is_an_error(network: LfqBert) -> None:
    with pytest.raises(InputError, match=f"steps is {GROUPS + 1}"):
        sample(network, SMALL, SamplingConfig(steps=GROUPS + 1), torch.tensor([0]), [0])


def test_a_picture_depends_on_its_seed_and_class_and_on_nothing_else(network: LfqBert) -> None:
    config = SamplingConfig(steps=6)
    labels, seeds = torch.tensor([0, 1, 0, 2]), [5, 5, 6, 7]
    torch.manual_seed(1)
    first = sample(network, SMALL, config, labels, seeds)
    torch.manual_seed(2)
    np.random.seed(3)
    assert torch.equal(sample(network, SMALL, config, labels, seeds), first)
    for one, other in pairwise(first):
        assert not torch.equal(one, other)


def inverse_cdf(logits: list[float], temperature: float, uniform: float) -> tuple[int, float]:
    """By definition, in double precision: the category whose stretch of the line holds `uniform`."""
    weights = [math.exp(logit / temperature) for logit in logits]
    position = uniform * math.fsum(weights)
    category = next(i for i, total in enumerate(accumulate(weights)) if position < total)
    return category, math.log(weights[category] / math.fsum(weights))


def test_categories_are_drawn_by_inverse_cdf_at_each_rows_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 20, 2, 8, generator=generator)
    uniforms = torch.rand(4, 20, 2, generator=generator)
    temperatures = torch.tensor([0.3, 1.0, 1.7, 5.0])
    drawn, log_probability = draw(logits, temperatures, uniforms)
    for row, token, group in np.ndindex(4, 20, 2):
        wanted, wanted_log = inverse_cdf(
            logits[row, token, group].tolist(), temperatures[row].item(), uniforms[row, token, group].item()
        )
        assert int(drawn[row, token, group]) == wanted
        assert float(log_probability[row, token, group]) == pytest.approx(wanted_log, abs=1e-4)


def test_impossible_categories_are_never_drawn() -> None:
    """Not even by the outermost uniforms that the noise contract gives."""
    logits = torch.tensor([-1e4, 0.0, -1e4, 0.0, -1e4]).expand(1, 2, 1, 5)
    edges = torch.tensor([0.5 / 2**23, 1 - 0.5 / 2**23]).view(1, 2, 1)
    drawn, log_probability = draw(logits, torch.ones(1), edges)
    assert drawn.flatten().tolist() == [1, 3]
    assert log_probability.flatten().tolist() == pytest.approx([math.log(0.5)] * 2)


def test_frequencies_follow_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    uniforms = torch.from_numpy(step_uniforms(1, 0, (10_000, 2))[0])[None]
    drawn, _ = draw(logits.expand(1, 10_000, 2, 4), torch.ones(1), uniforms)
    shares = torch.bincount(drawn.flatten(), minlength=4) / drawn.numel()
    assert (shares - logits.softmax(0)).abs().max() < 0.01


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_remask_takes_the_least_confident(seed: int, groups: int) -> None:
    rng = np.random.default_rng(seed)
    confidence = rng.standard_normal((3, groups, 1)).astype(np.float32)
    counts = rng.integers(0, groups + 1, 3)
    mask = remask(torch.from_numpy(confidence), torch.from_numpy(counts)).numpy()
    for row in range(3):
        wanted = np.argsort(confidence[row, :, 0])[: counts[row]]
        assert sorted(np.flatnonzero(mask[row])) == sorted(wanted)


def test_groups_as_unsure_as_the_last_one_are_masked_with_it() -> None:
    confidence = torch.tensor([[0.5, 0.2, 0.5, 0.9, 0.1]])[..., None]
    assert remask(confidence, torch.tensor([3]))[0, :, 0].tolist() == [True, True, True, False, True]
    assert not remask(confidence, torch.tensor([0])).any()


def test_guidance_moves_logits_away_from_the_unconditional_ones() -> None:
    """A network that answers with the class number: conditional 2, unconditional 9."""
    calls: list[tuple[list[int], int]] = []

    def logits_fn(tokens: Tensor, labels: Tensor) -> Tensor:
        calls.append((labels.tolist(), len(tokens)))
        return labels.float().view(-1, 1, 1, 1).expand(-1, 4, 2, 8)

    tokens, labels = torch.zeros(3, 4, 2, dtype=torch.int64), torch.tensor([2, 3, 4])
    scales = torch.tensor([1.5, -1.0, 0.0])
    logits = guided_logits(logits_fn, tokens, labels, scales, guided=2, no_class=9)
    assert logits[:, 0, 0, 0].tolist() == [2 + 1.5 * (2 - 9), 3 - 1.0 * (3 - 9), 4.0]
    assert calls == [([2, 3, 4, 9, 9], 5)]
    calls.clear()
    plain = guided_logits(logits_fn, tokens, labels, torch.zeros(3), guided=0, no_class=9)
    assert plain[:, 0, 0, 0].tolist() == [2.0, 3.0, 4.0]
    assert calls == [([2, 3, 4], 3)]


def test_confidence_is_log_probability_plus_scaled_gumbel_noise() -> None:
    """Without noise the most probable groups stay, with much noise the luckiest ones do."""
    logits = torch.zeros(1, 4, 1, 3)
    logits[0, :, 0, 0] = torch.tensor([9.0, 1.0, 7.0, 3.0])
    luck = torch.tensor([0.1, 0.9, 0.2, 0.8]).view(1, 4, 1)

    def kept(noise: float) -> list[int]:
        tokens, _ = step(
            lambda tokens, labels: logits,
            StepInputs(
                tokens=torch.full((1, 4, 1), 3),
                labels=torch.zeros(1, dtype=torch.int64),
                guidance_scale=torch.zeros(1),
                temperature=torch.ones(1),
                noise_temperature=torch.tensor([noise]),
                mask_count=torch.tensor([2]),
                category_uniforms=torch.full((1, 4, 1), 1e-3),
                confidence_uniforms=luck,
            ),
            guided=0,
            mask_id=3,
            no_class=0,
        )
        return (tokens.flatten() != 3).nonzero().flatten().tolist()

    assert kept(0.0) == [0, 2]
    assert kept(100.0) == [1, 3]
