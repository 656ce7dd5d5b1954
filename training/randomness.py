"""All randomness of a training step as a function of (seed, step), so that a resumed run repeats it."""

import numpy as np
import torch

NETWORK, MASKS = 0, 1  # what the random numbers are for


def seed_networks(seed: int, batch: int, process: int) -> None:
    """Seed what networks draw by themselves (dropout) for this batch, differently in every process."""
    torch.manual_seed(_seed(seed, batch, NETWORK, process))


def mask_noise(seed: int, step: int) -> torch.Generator:
    """Random numbers for the masks of all pictures of this step, the same in every process, on the CPU."""
    return torch.Generator().manual_seed(_seed(seed, step, MASKS))


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
