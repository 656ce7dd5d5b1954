"""The ways of computing that `maskbit bench models` runs side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from models.bundle import Bundle, Manifest
from models.drawing import Drawing, draw, step_batch
from models.errors import InputError, MaskBitError
from models.published_way import PublishedWay
from models.runtime.base import Integers, Pixels, Runtime
from models.runtime.loading import RUNTIMES, TRITON_VARIABLE, Wish, choose_runtime
from models.sampling_config import SamplingConfig


class Contender(Protocol):
    """What is measured; `number_bytes` is the size of the generator's weights and activations."""

    name: str
    number_bytes: int

    def encode(self, images: Pixels) -> object:
        """Tokenize."""

    def decode(self, grids: Integers) -> object:
        """Detokenize."""

    def step(self, drawings: Sequence[Drawing]) -> object:
        """One step of pictures whose next step is the same, its noise included; they stay as they are."""

    def picture(self, sampling: SamplingConfig, labels: Sequence[int]) -> object:
        """Pictures from class to pixels."""


class Published:
    """The published way, on a device."""

    name = "published way"
    number_bytes = 4

    def __init__(self, bundle: Bundle, device: torch.device) -> None:
        self._way = PublishedWay(bundle, device)
        self.encode, self.decode = self._way.encode, self._way.decode
        # It keeps the tokens on the device from step to step, hence they are sent once.
        self._held: dict[int, torch.Tensor] = {}

    def step(self, drawings: Sequence[Drawing]) -> object:
        tokens = self._tokens(drawings)
        labels = torch.tensor([one.label for one in drawings], device=self._way.device)
        noise = torch.rand(2, *tokens.shape).to(self._way.device)
        return self._way.step(drawings[0].plan, tokens, labels, noise, guided=True)

    def _tokens(self, drawings: Sequence[Drawing]) -> torch.Tensor:
        if len(drawings) not in self._held:
            tokens = torch.from_numpy(np.stack([one.tokens for one in drawings]))
            self._held = {len(drawings): tokens.to(self._way.device)}
        return self._held[len(drawings)]

    def picture(self, sampling: SamplingConfig, labels: Sequence[int]) -> object:
        return self._way.decode(self._way.draw(sampling, labels))


class OfRuntime:
    """A runtime of the project."""

    def __init__(self, runtime: Runtime, manifest: Manifest) -> None:
        self.name = f"{runtime.name} {runtime.precision}"
        self.number_bytes = 4 if runtime.precision == "fp32" else 2
        self._runtime, self._manifest = runtime, manifest
        self.encode, self.decode = runtime.encode, runtime.decode

    def step(self, drawings: Sequence[Drawing]) -> object:
        return self._runtime.step(step_batch(drawings))

    def picture(self, sampling: SamplingConfig, labels: Sequence[int]) -> object:
        grids = draw(self._runtime, self._manifest, sampling, labels, list(range(len(labels))))
        return self._runtime.decode(grids)


def check_names(names: Sequence[str]) -> None:
    """Raise InputError for names that `load_contenders` knows no runtime of."""
    for name in names:
        if name.partition(":")[0] not in RUNTIMES:
            raise InputError(f"--runtimes holds {name!r}; allowed are {', '.join(RUNTIMES)}")


def load_contenders(
    bundle: Bundle, device: torch.device, names: Sequence[str]
) -> tuple[list[Contender], list[str]]:
    """The published way and the runtimes `names`, warmed up, and a line about each that cannot be had.

    A name is that of a runtime, with a precision if wanted: `torch`, `onnx:bf16`.
    """
    contenders: list[Contender] = [Published(bundle, device)]
    missing = []
    for name in names:
        kind, _, precision = name.partition(":")
        try:
            wish = Wish(
                device=str(device),
                precision=precision or "auto",
                # So that all have as many as PyTorch, which OMP_NUM_THREADS tells.
                threads=torch.get_num_threads(),
                triton_url=os.environ.get(TRITON_VARIABLE),
            )
            runtime = choose_runtime(bundle, kind, wish).runtime
        except MaskBitError as exc:
            missing.append(f"{name}: {exc}")
        else:
            contenders.append(OfRuntime(runtime, bundle.manifest))
    return contenders, missing
