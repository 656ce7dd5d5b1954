"""The published way of computing, which all speeds are compared with.

Eager PyTorch in fp32 (TF32 on CUDA), batches of whatever size comes, both guidance passes at every step of a
guided picture, all pictures at the same step, noise drawn on the CPU and sent over, tokens on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.bundle import GENERATOR_WEIGHTS, TOKENIZER_WEIGHTS, Bundle
from models.checkpoint import load_into, read_weights
from models.drawing import generator_of, grids_of
from models.networks import build_generator, build_tokenizer
from models.runtime.base import Integers, Pixels
from models.runtime.torch_runtime import float32_arithmetic
from models.sampler import StepInputs, step
from models.sampling_config import SamplingConfig
from models.schedule import StepPlan, plan_steps


class PublishedWay:
    """A bundle's networks, without anything that makes them faster."""

    def __init__(self, bundle: Bundle, device: torch.device) -> None:
        self.device = device
        self.manifest = bundle.manifest
        self.tokenizer = build_tokenizer(self.manifest.tokenizer)
        self._load(self.tokenizer, bundle.weights_file(TOKENIZER_WEIGHTS))
        if self.manifest.generator is not None:
            self.generator = build_generator(self.manifest.generator)
            self._load(self.generator, bundle.weights_file(GENERATOR_WEIGHTS))

    def _load(self, network: torch.nn.Module, path: Path) -> None:
        load_into(network, read_weights(path), path)
        network.to(self.device).eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, images: Pixels) -> Integers:
        """Token indices i64 (B, h, w) of pictures u8 (B, H, W, 3)."""
        pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float() / 255
        with float32_arithmetic(tf32=self.device.type == "cuda"):
            return self.tokenizer.encode(pixels.contiguous()).indices.cpu().numpy()

    @torch.no_grad()
    def decode(self, indices: Integers) -> Pixels:
        """Pictures u8 (B, H, W, 3) of token indices i64 (B, h, w)."""
        with float32_arithmetic(tf32=self.device.type == "cuda"):
            pixels = self.tokenizer.decode_indices(torch.from_numpy(indices).to(self.device))
        return (pixels.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()

    @torch.no_grad()
    def draw(self, sampling: SamplingConfig, labels: Sequence[int]) -> Integers:
        """Token indices i64 (B, h, w) of one picture per label, whose noise comes from torch's generator."""
        config = generator_of(self.manifest)
        shape = (len(labels), config.num_tokens, config.codebook_splits)
        classes = torch.tensor(labels, device=self.device)
        tokens = drawn = torch.full(shape, config.group_codes, device=self.device)
        for plan in plan_steps(sampling, shape[1] * shape[2]):
            noise = torch.rand(2, *shape).clamp_min(torch.finfo(torch.float32).tiny).to(self.device)
            tokens, drawn = self.step(plan, tokens, classes, noise, guided=sampling.guidance_scale != 0)
        return grids_of(self.manifest, drawn.cpu().numpy())

    @torch.no_grad()
    def step(
        self, plan: StepPlan, tokens: Tensor, labels: Tensor, noise: Tensor, *, guided: bool
    ) -> tuple[Tensor, Tensor]:
        """Next tokens and drawn groups, i64 (B, N, m), of `tokens` and uniform `noise` f32 (2, B, N, m).

        A guided step runs the network twice for every row, even where this step's scale is 0.
        """
        config, rows = generator_of(self.manifest), len(labels)

        def every_row(value: float) -> Tensor:
            return torch.full((rows,), value, device=self.device)

        inputs = StepInputs(
            tokens=tokens,
            labels=labels,
            guidance_scale=every_row(plan.guidance_scale),
            temperature=every_row(plan.temperature),
            noise_temperature=every_row(plan.noise_temperature),
            mask_count=torch.full((rows,), plan.mask_count, device=self.device),
            category_uniforms=noise[0],
            confidence_uniforms=noise[1],
        )
        with float32_arithmetic(tf32=self.device.type == "cuda"):
            return step(self.generator, inputs, rows if guided else 0, config.group_codes, config.nclass)
