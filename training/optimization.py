"""AdamW, its learning rate, and one update."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from training.config import OptimizerConfig
from training.lr_schedule import cosine_with_minimum
from training.recipe import Recipe
from training.sharding import whole


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig, device: torch.device
) -> torch.optim.AdamW:
    """AdamW over those of `parameters` that are trained; its learning rate is set at every update."""
    return torch.optim.AdamW(
        [parameter for parameter in parameters if parameter.requires_grad],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        fused=device.type == "cuda",
    )


def pictures_per_step(recipe: Recipe, accelerator: Accelerator) -> int:
    """Pictures that one optimizer step sees, over all processes and accumulated batches."""
    loop = recipe.training
    return int(loop.per_gpu_batch_size * loop.gradient_accumulation_steps * accelerator.num_processes)


def learning_rate(recipe: Recipe, step: int, pictures: int) -> float:
    """Learning rate of 0-based `step`, each of which sees `pictures`."""
    config = recipe.optimizer
    base = config.learning_rate * (pictures if config.scale_lr else 1)
    return cosine_with_minimum(step, base, recipe.lr_scheduler.warmup_steps, recipe.training.max_train_steps)


def update(
    accelerator: Accelerator,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    rate: float,
    max_grad_norm: float,
) -> Tensor:
    """Clip the gradients that were summed and step; returns their norm before clipping and clears them."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    norm = accelerator.clip_grad_norm_(network.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    assert norm is not None
    return whole(norm)
