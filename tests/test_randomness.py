from itertools import product

import torch

from training.randomness import mask_noise, seed_networks


def dropout_of(seed: int, step: int, process: int) -> tuple[float, ...]:
    seed_networks(seed, step, process)
    return tuple(torch.rand(4).tolist())


def masks_of(seed: int, step: int) -> tuple[float, ...]:
    return tuple(torch.rand(4, generator=mask_noise(seed, step)).tolist())


def test_a_step_draws_the_same_again_whatever_was_drawn_before() -> None:
    first = dropout_of(7, 3, 0), masks_of(7, 3)
    torch.rand(1000)
    assert (dropout_of(7, 3, 0), masks_of(7, 3)) == first


def test_seeds_steps_processes_and_purposes_draw_differently() -> None:
    seeds = (0, 1, 42, 2**31 - 1)
    drawn = [dropout_of(seed, step, process) for seed, step, process in product(seeds, range(5), range(3))]
    drawn += [masks_of(seed, step) for seed, step in product(seeds, range(5))]
    assert len(set(drawn)) == len(drawn)


def test_masks_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    masks_of(1, 1)
    assert torch.equal(torch.rand(1), expected)
