"""The processes of a run: this one alone, or those that `accelerate launch` or `torchrun` started."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    gather_object,
)

from models.errors import RuntimeUnavailable
from training.config import LoopConfig

# The other processes wait while the main one evaluates, draws samples and writes a checkpoint.
PATIENCE = timedelta(hours=3)

# Seconds in which a thread of gloo lets go of the tensors of the last barrier. It needs Python's lock for it,
# which PyTorch holds as it waits for the thread to end: without a pause, some runs never end, or abort.
PAUSE_S = 0.3


@contextmanager
def processes(loop: LoopConfig) -> Iterator[Accelerator]:
    """The accelerator of a run, for as long as the block lasts; RuntimeUnavailable for a missing GPU."""
    if loop.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeUnavailable("training.device is 'cuda', but PyTorch sees no CUDA GPU; use auto or cpu")
    accelerator = Accelerator(
        mixed_precision=loop.mixed_precision,
        cpu=loop.device == "cpu",
        # Each process keeps its own buffers: batch norms of a discriminator run twice before one update.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
    )
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise RuntimeUnavailable("FSDP is configured in its version 1; set fsdp_version: 2 for accelerate")
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high" if loop.enable_tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = loop.enable_tf32
        torch.backends.cudnn.benchmark = True
    try:
        with warnings.catch_warnings():
            # accelerate passes on the older of two names that PyTorch has for the setting above.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            yield accelerator
    finally:
        if dist.is_initialized():
            time.sleep(PAUSE_S)
        accelerator.end_training()
        # accelerate keeps its settings for the whole process; a second run here may want others.
        AcceleratorState._reset_state(reset_partial_state=True)


def merged(accelerator: Accelerator, own: Mapping[str, Any]) -> dict[str, Any]:
    """The items of all processes' mappings, whose keys differ."""
    if accelerator.num_processes == 1:
        return dict(own)
    parts: list[dict[str, Any]] = gather_object([dict(own)])
    return {key: value for part in parts for key, value in part.items()}


def total(accelerator: Accelerator, own: int) -> int:
    """Sum of a number of each process, which call this together."""
    everyone = accelerator.reduce(torch.tensor(own, device=accelerator.device), reduction="sum")
    assert isinstance(everyone, torch.Tensor)
    return int(everyone)


def process_count() -> int:
    """How many processes were started together, as their launcher tells it."""
    return int(os.environ.get("WORLD_SIZE", "1"))
