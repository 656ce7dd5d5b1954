"""The models in PyTorch, on CPU or CUDA."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from models.bundle import GENERATOR_WEIGHTS, TOKENIZER_WEIGHTS, Bundle
from models.checkpoint import load_into, read_weights
from models.config import GeneratorConfig
from models.errors import RuntimeUnavailable, first_line
from models.generator import Generator
from models.networks import build_generator, build_tokenizer
from models.runtime import onednn
from models.runtime.base import (
    CPU_BUCKETS,
    CUDA_BUCKETS,
    STRICT_BUCKET,
    TOKENIZER_ROWS,
    Floats,
    Integers,
    Pixels,
    StepBatch,
    StepResult,
    bucket_for,
)
from models.runtime.cuda_graphs import CudaGraphs
from models.runtime.graph_runtime import plausible
from models.sampler import StepInputs, step
from models.signature import STEP, graph_specs

log = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device `name`; `auto` is CUDA where there is one, else the CPU."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise RuntimeUnavailable(f"device is {name!r}; allowed are auto, cpu, cuda and cuda:<number>")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RuntimeUnavailable(
            f"device {name!r}: PyTorch sees {torch.cuda.device_count()} CUDA GPUs; use auto or cpu"
        )
    return device


# The settings are the process's: a thread that leaves would change them under one that is still inside.
_ARITHMETIC = threading.RLock()


@contextmanager
def float32_arithmetic(*, tf32: bool) -> Iterator[None]:
    """Whether CUDA rounds the factors of fp32 products and convolutions to TF32; a CPU never does.

    One thread at a time is inside; a GPU works on what it was given after the end of the block.
    """
    with _ARITHMETIC:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
                yield
        finally:
            torch.set_float32_matmul_precision(before)


def full_precision() -> AbstractContextManager[None]:
    """Arithmetic for an encoder: PyTorch's default for convolutions is TF32, whose mantissa flips bits."""
    return float32_arithmetic(tf32=False)


class TorchRuntime:
    """Runtime of a bundle in PyTorch.

    `precision` concerns the generator (`auto`: fp16 on CUDA, fp32 on CPU); the tokenizer stays in fp32,
    because a bit is the sign of a latent; only the decoder, which makes no bits, may round to TF32 on CUDA.
    With `strict` it does not, and every network call has one and the same number of rows, so that a row's
    tokens are bit-equal in any company.
    """

    name = "torch"

    def __init__(
        self, bundle: Bundle, *, device: str = "auto", precision: str = "auto", strict: bool = False
    ) -> None:
        self.device = choose_device(device)
        # bf16 is as fast, but its 7 bits of mantissa change more than 1 % of the tokens of a step.
        usual = "fp16" if self.device.type == "cuda" else "fp32"
        self.precision = usual if precision == "auto" else precision
        if self.precision not in DTYPES:
            raise RuntimeUnavailable(f"precision is {precision!r}; allowed are auto, {', '.join(DTYPES)}")
        usual_buckets: tuple[int, ...] = CUDA_BUCKETS if self.device.type == "cuda" else CPU_BUCKETS
        self.buckets = (STRICT_BUCKET,) if strict else usual_buckets
        self._tf32_decoder = self.device.type == "cuda" and not strict
        self._tokenizer_buckets = tuple(rows for rows in self.buckets if rows <= TOKENIZER_ROWS)
        manifest = self._manifest = bundle.manifest
        self.image_size, self.grid = manifest.image_size, manifest.grid
        self.tokenizer = build_tokenizer(manifest.tokenizer)
        self._prepare(self.tokenizer, bundle, TOKENIZER_WEIGHTS)
        self.tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.generator: Generator | None = None
        if manifest.generator is not None:
            self.generator = build_generator(manifest.generator)
            self._prepare(self.generator, bundle, GENERATOR_WEIGHTS)
            self._network = self._accelerated(self.generator, DTYPES[self.precision])

    def _prepare(self, network: torch.nn.Module, bundle: Bundle, file: str) -> None:
        path = bundle.weights_file(file)
        load_into(network, read_weights(path), path)
        network.to(self.device).eval().requires_grad_(False)

    def _accelerated(self, generator: Generator, dtype: torch.dtype) -> Callable[..., Tensor]:
        generator.to(dtype)
        if self.device.type == "cuda":
            return CudaGraphs(generator, self.device)
        if onednn.available(dtype):
            onednn.pack(generator)
        return generator

    @torch.inference_mode()
    def encode(self, images: Pixels) -> Integers:
        """Token indices i64 (B, h, w) of pictures u8 (B, H, W, 3)."""
        pixels = self._sent(images).permute(0, 3, 1, 2).float() / 255
        with full_precision():
            indices = self._bucketed(
                lambda x: self.tokenizer.encode(x).indices, pixels, buckets=self._tokenizer_buckets
            )
        return indices.cpu().numpy()

    @torch.inference_mode()
    def decode(self, indices: Integers) -> Pixels:
        """Pictures u8 (B, H, W, 3) of token indices i64 (B, h, w)."""
        with float32_arithmetic(tf32=self._tf32_decoder):
            pixels = self._bucketed(
                self.tokenizer.decode_indices, self._sent(indices), buckets=self._tokenizer_buckets
            )
        # round-to-nearest of the clamped picture, as PNG writers of [0, 1] floats do
        return (pixels.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()

    @torch.inference_mode()
    def step(self, batch: StepBatch) -> StepResult:
        """One sampling step for all rows of `batch`; rows without guidance cost no unconditional pass."""
        config = self._generator_config()
        order = np.argsort(batch.guidance_scale == 0, kind="stable")
        ordered = batch.take(order)
        guided = int(np.count_nonzero(ordered.guidance_scale))
        inputs = StepInputs(**{f.name: self._sent(getattr(ordered, f.name)) for f in fields(ordered)})
        tokens, drawn = step(self._logits, inputs, guided, config.group_codes, config.nclass)
        # One transfer, the only place of a step where the host waits for a GPU.
        both = torch.stack([tokens, drawn]).cpu().numpy()[:, np.argsort(order)]
        return StepResult(both[0], both[1])

    def _sent(self, array: Pixels | Integers | Floats) -> Tensor:
        """A copy of `array` on the device."""
        # A copy, since arrays made of received bytes are read-only; torch takes no negative strides.
        tensor = torch.tensor(np.ascontiguousarray(array))
        if self.device.type != "cuda":
            return tensor
        # From page-locked memory the transfer runs while the host goes on.
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _generator_config(self) -> GeneratorConfig:
        if self.generator is None:
            raise RuntimeUnavailable("this bundle has no generator: it tokenizes and detokenizes only")
        return self.generator.config

    def _logits(self, tokens: Tensor, labels: Tensor) -> Tensor:
        return self._bucketed(self._network, tokens, labels, buckets=self.buckets)

    def _bucketed(self, network: Callable[..., Tensor], *inputs: Tensor, buckets: tuple[int, ...]) -> Tensor:
        """`network` over all rows of `inputs`, in calls padded to `buckets` by repeating the last row."""
        rows, largest = len(inputs[0]), buckets[-1]
        parts = []
        for start in range(0, rows, largest):
            chunk = [x[start : start + largest] for x in inputs]
            count = len(chunk[0])
            missing = bucket_for(count, buckets) - count
            if missing:
                chunk = [torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) for x in chunk]
            parts.append(network(*chunk)[:count])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @property
    def device_name(self) -> str:
        """`cpu` or `cuda:<number>`."""
        return str(self.device)

    def memory_bytes(self) -> int:
        """CUDA memory that PyTorch has reserved; 0 on a CPU."""
        return torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else 0

    def warm_up(self) -> None:
        """Run every bucket once, so that the first request meets no slow start.

        Buckets that a GPU has no memory for are given up, those of the tokenizer apart from the generator's.
        """
        if self.device.type == "cuda":
            # A GPU builds its kernels and graphs per shape.
            self._tokenizer_buckets = self._held(self._tokenizer_buckets, self._warm_tokenizer)
            self.buckets = self._held(self.buckets, self._warm_generator)
        else:
            # A CPU has only its thread pool to start.
            self._warm_tokenizer(self.buckets[0])
            self._warm_generator(self.buckets[0])

    def _held(self, buckets: tuple[int, ...], warm: Callable[[int], None]) -> tuple[int, ...]:
        """Those of `buckets` that `warm` finds memory for. Raises torch.OutOfMemoryError if there is none."""
        # The largest first: a smaller graph can use its memory again, while a larger one needs other memory.
        held = tuple(rows for rows in reversed(buckets) if self._holds(rows, warm))[::-1]
        if not held:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {self.device} holds no batch of {buckets[0]}")
        if held != buckets:
            log.warning("%s holds batches of at most %d rows", self.device, held[-1])
        return held

    def _holds(self, rows: int, warm: Callable[[int], None]) -> bool:
        try:
            warm(rows)
            return True
        except torch.OutOfMemoryError as exc:
            log.info("%s has no memory for %d rows: %s", self.device, rows, first_line(exc))
        # Not earlier, for the error's frames hold on to tensors.
        torch.cuda.empty_cache()
        return False

    def _warm_tokenizer(self, rows: int) -> None:
        side = self.image_size
        self.decode(self.encode(np.zeros((rows, side, side, 3), dtype=np.uint8)))

    def _warm_generator(self, rows: int) -> None:
        if self.generator is not None:
            # Without guidance, with which a row would be two of the network's.
            scales = np.zeros(rows, dtype=np.float32)
            given = plausible(graph_specs(self._manifest)[STEP], rows)
            self.step(StepBatch(**given, guidance_scale=scales))
