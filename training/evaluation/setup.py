"""What an evaluation works with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.bundle import Bundle
from models.runtime.base import Runtime
from models.validation import require, require_positive
from training.evaluation.observer import Instruments
from training.evaluation.ranks import Ranks


@dataclass(frozen=True)
class EvaluationSettings:
    """`batch_size` pictures together; `blocks` and `replicates` of the intervals (0: none).

    `compared` bounds the pictures of each side whose features precision and recall compare.
    """

    batch_size: int = 64
    blocks: int = 20
    replicates: int = 100
    compared: int = 10_000

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "blocks", "compared")
        require(self.replicates >= 0, f"replicates is {self.replicates}; it must be at least 0")


@dataclass(frozen=True)
class Setup:
    """A loaded bundle, what it is measured with, and the processes that share the work.

    `device` is where distances are computed.
    """

    bundle: Bundle
    runtime: Runtime
    instruments: Instruments
    settings: EvaluationSettings
    ranks: Ranks
    device: torch.device
