"""What this machine reaches at best: products of matrices, and memory traffic, measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from models.runtime import onednn

CALLS = 5
Clock = Callable[[], float]
# What other processes take does not count as processor time; but threads that wait for each other do.
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Ceilings:
    """`flops` a second of `product`, and `bytes` a second of a copy; the best of CALLS calls each.

    The numbers of the product have `number_bytes`: arithmetic with smaller ones may be faster.
    """

    flops: float
    bytes: float
    product: str
    number_bytes: int

    def memory_bound(self, flops: float, moved: float) -> bool:
        """Whether moving `moved` bytes takes longer than `flops` operations, both at full speed."""
        return moved / self.bytes > flops / self.flops


def measure_ceilings(device: torch.device, clock: Clock) -> Ceilings:
    """Measure in bf16 at 8192^3 on CUDA, in fp32 at 2048^3 on a CPU; a copy of 1 GiB or 256 MiB."""
    cuda = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if cuda else (2048, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    multiply: Callable[[], object] = partial(torch.mm, a, b, out=torch.empty_like(a))
    if not cuda and onednn.available(dtype):
        # PyTorch's own choice of a library, MKL, is not the fastest on every processor.
        multiply = partial(onednn.PackedLinear(b, torch.zeros(size)), a)
    source = torch.ones((1 << 30 if cuda else 1 << 28) // 4, device=device)
    target = torch.empty_like(source)
    return Ceilings(
        flops=2 * size**3 / best_seconds(multiply, device, clock),
        # A copy reads every byte once and writes it once.
        bytes=2 * 4 * len(source) / best_seconds(lambda: target.copy_(source), device, clock),
        product=f"{str(dtype).removeprefix('torch.')} {size}^3",
        number_bytes=dtype.itemsize,
    )


def best_seconds(call: Callable[[], object], device: torch.device, clock: Clock) -> float:
    """The shortest of CALLS calls, after one that is not counted."""
    call()
    return min(seconds_of(call, device, clock) for _ in range(CALLS))


def seconds_of(call: Callable[[], object], device: torch.device, clock: Clock) -> float:
    """Seconds by `clock` until `call` is done, on the device too."""
    wait(device)
    started = clock()
    call()
    wait(device)
    return clock() - started


def wait(device: torch.device) -> None:
    """Until everything that was sent to `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
