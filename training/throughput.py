"""How fast a run is: pictures and floating-point operations per second, and the share of time data takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T")


def count_flops(step: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions in `step`, forward and backward."""
    # Attention by plain products, as not every fused kernel is one whose operations are known.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


class Throughput:
    """Sums time and pictures between two reports."""

    def __init__(self, pictures: int) -> None:
        self.pictures = pictures  # of one step, over all processes
        self.flops = 0  # of one step, over all processes; 0 = not counted
        self._restart()

    def _restart(self) -> None:
        self._began = time.perf_counter()
        self._waited = 0.0
        self._aside = 0.0
        self._steps = 0

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """`batches`, with the time spent on waiting for each of them counted as data time."""
        while True:
            before = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += time.perf_counter() - before
            yield batch

    def leave_out(self, seconds: float) -> None:
        """Time that is no training: evaluation, samples, checkpoints."""
        self._aside += seconds

    def step(self) -> None:
        """Count a finished step."""
        self._steps += 1

    def report(self) -> dict[str, float]:
        """Numbers since the last report, which restarts them."""
        seconds = max(time.perf_counter() - self._began - self._aside, 1e-9)
        values = {
            "images_per_s": self._steps * self.pictures / seconds,
            "data_share": self._waited / seconds,
        }
        if self.flops:
            values["flops_per_s"] = self._steps * self.flops / seconds
        self._restart()
        return values
