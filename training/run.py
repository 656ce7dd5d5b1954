"""What every training loop shares: optimizer, per-step randomness, progress bar, TensorBoard, grids."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType

import numpy as np
import torch
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from training.config import OptimizerConfig, Recipe
from training.lr_schedule import cosine_with_minimum


def seed_step(seed: int, step: int) -> None:
    """Make all randomness of this step a function of (seed, step), so that a resumed run repeats it."""
    torch.manual_seed((seed << 32) + step)


def autocast(device: torch.device, mixed_precision: str) -> AbstractContextManager[object]:
    """bf16 arithmetic in the forward pass when asked for; weights and optimizer stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision == "bf16")


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over all parameters of `network`."""
    return torch.optim.AdamW(
        network.parameters(),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
    )


def optimizer_step(
    recipe: Recipe, network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, step: int
) -> float:
    """Backward pass, clipping and update for 0-based `step`; returns the gradient norm before clipping."""
    rate = cosine_with_minimum(
        step,
        recipe.optimizer.learning_rate,
        recipe.lr_scheduler.warmup_steps,
        recipe.training.max_train_steps,
    )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(network.parameters(), recipe.training.max_grad_norm)
    optimizer.step()
    return float(norm)


def image_grid(images: Tensor, columns: int) -> Image.Image:
    """One picture of `images` f32 (n, 3, H, W), clamped to [0, 1], row by row."""
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    padded = torch.ones(rows * columns, channels, height, width)
    padded[:n] = images.detach().float().cpu().clamp(0, 1)
    grid = padded.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    return Image.fromarray(
        (grid.reshape(rows * height, columns * width, channels) * 255).round().byte().numpy()
    )


class RunLog:
    """Progress bar on the terminal, scalars and pictures in TensorBoard, grids as PNG in the run folder.

    Scalars are averaged over the steps since they were last written.
    """

    def __init__(self, recipe: Recipe, start: int) -> None:
        self.recipe = recipe
        self.folder = recipe.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        # What a killed run logged after its last checkpoint happens again: the first telling is hidden.
        purge = start + 1 if start else None
        self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=purge)
        self.progress = Progress(
            TextColumn(recipe.experiment.name),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[scalars]}"),
        )
        self.task = self.progress.add_task(
            "steps", total=recipe.training.max_train_steps, completed=start, scalars=""
        )
        self._sums: dict[str, float] = {}
        self._count = 0

    def __enter__(self) -> RunLog:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        self.writer.close()

    def step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Count one finished step (1-based) with its scalars."""
        for key, value in scalars.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        self._count += 1
        self.progress.update(self.task, completed=step)
        if step % self.recipe.experiment.log_every == 0:
            means = {key: value / self._count for key, value in self._sums.items()}
            self._sums, self._count = {}, 0
            self.scalars(step, "train", means)
            text = " ".join(f"{key} {value:.4g}" for key, value in means.items())
            self.progress.update(self.task, scalars=text)

    def scalars(self, step: int, prefix: str, values: Mapping[str, float]) -> None:
        """Write scalars at `step` at once."""
        for key, value in values.items():
            self.writer.add_scalar(f"{prefix}/{key}", value, step)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Write evaluation results and print them above the bar."""
        self.scalars(step, "eval", values)
        self.progress.console.print(
            f"step {step}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        )

    def pictures(self, step: int, name: str, images: Tensor, columns: int) -> None:
        """Save `images` f32 (n, 3, H, W) as a grid."""
        grid = image_grid(images, columns)
        grid.save(self.folder / f"{name}-{step:08d}.png")
        self.writer.add_image(name, np.array(grid), step, dataformats="HWC")
