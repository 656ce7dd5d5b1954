"""Exponential moving average of a network's parameters (SPEC section 4)."""

from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from training.sharding import is_sharded, whole

Module = TypeVar("Module", bound=nn.Module)


def ema_decay(update: int, maximum: float) -> float:
    """Decay at the 1-based `update`: 0 for the first, then t/(9+t), at most `maximum`."""
    return 0.0 if update <= 1 else min(update / (9 + update), maximum)


class Ema(Generic[Module]):
    """Holds `average`, a frozen copy of a network that follows its training weights.

    With `maximum` 0 the average is the network's newest weights.
    """

    def __init__(self, network: Module, maximum: float) -> None:
        self.average: Module = deepcopy(network).eval().requires_grad_(False)
        self.maximum = maximum
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average towards the weights of `network`, which may be sharded over processes."""
        self.updates += 1
        weight = 1 - ema_decay(self.updates, self.maximum)
        averages: list[Tensor] = list(self.average.parameters())
        weights: list[Tensor] = list(network.parameters())
        if is_sharded(network):
            for own, other in zip(averages, weights, strict=True):  # whole, all at once may not fit in memory
                own.lerp_(whole(other), weight)
        else:
            torch._foreach_lerp_(averages, weights, weight)
        for own_buffer, other_buffer in zip(self.average.buffers(), network.buffers(), strict=True):
            own_buffer.copy_(whole(other_buffer))
