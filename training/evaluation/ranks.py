"""The processes that evaluate together: this one alone, or those of `torchrun` or `accelerate launch`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# A process waits as long as the slowest one draws; one that dies breaks its connections at once.
TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `count`."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes and prints what all have found."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            dist.barrier()

    def summed(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums of all processes by name; a process may lack names that others have."""
        shapes = self.gathered({name: tuple(values.shape) for name, values in sums.items()})
        if self.count == 1:
            return dict(sums)
        result = {}
        for name, shape in sorted({key: value for part in shapes for key, value in part.items()}.items()):
            own = sums.get(name)
            result[name] = torch.zeros(shape, dtype=torch.float64) if own is None else own.clone()
            dist.all_reduce(result[name])
        return result

    def gathered(self, item: Any) -> list[Any]:
        """The `item` of every process, in the order of their ranks."""
        if self.count == 1:
            return [item]
        items: list[Any] = [None] * self.count
        dist.all_gather_object(items, item)
        return items


@contextmanager
def evaluation_ranks() -> Iterator[Ranks]:
    """The ranks that the launcher's environment states, for as long as the block lasts.

    What they exchange are sums on the CPU, for which gloo serves on every machine.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield Ranks(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()


def rank_device(name: str) -> str:
    """The device `name`, where `auto` and `cuda` mean this process's own GPU if several share a machine."""
    local = os.environ.get("LOCAL_RANK")
    if local is not None and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        return f"cuda:{int(local) % max(torch.cuda.device_count(), 1)}"
    return name
