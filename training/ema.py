"""Exponential moving average of a network's parameters (SPEC section 4)."""

from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def ema_decay(update: int, maximum: float) -> float:
    """Decay at the 1-based `update`: 0 for the first, then t/(9+t), at most `maximum`."""
    return 0.0 if update <= 1 else min(update / (9 + update), maximum)


class Ema(Generic[Module]):
    """Holds `average`, a frozen copy of a network that follows its training weights."""

    def __init__(self, network: Module, maximum: float) -> None:
        self.average: Module = deepcopy(network).eval().requires_grad_(False)
        self.maximum = maximum
        self.updates = 0

    @torch.no_grad()
    def update(self, network: Module) -> None:
        """Move the average towards the weights of `network`."""
        self.updates += 1
        weight = 1 - ema_decay(self.updates, self.maximum)
        averages: list[torch.Tensor] = list(self.average.parameters())
        torch._foreach_lerp_(averages, list[torch.Tensor](network.parameters()), weight)
        for own, other in zip(self.average.buffers(), network.buffers(), strict=True):
            own.copy_(other)
