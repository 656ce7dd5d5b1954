"""What a run tells: progress bar on the terminal, scalars and pictures in TensorBoard, grids as PNG."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType

import numpy as np
import torch
from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from models.errors import TrainingError
from training.checkpoints import RunState, checkpoint_files
from training.picture_grid import picture_grid
from training.processes import total
from training.quiet_writers import quiet_writers
from training.recipe import Recipe
from training.sharding import whole
from training.throughput import Throughput

SHOWN = ("loss", "images_per_s", "data_share")


class RunLog:
    """Log of all processes of a run, written by the main one.

    Scalars are averaged over processes and over the steps since they were last written, which the last step
    does in any case. They are kept on the device until then, so that a GPU need not be waited for at every
    step.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator, state: RunState, pictures: int) -> None:
        self.recipe = recipe
        self.accelerator = accelerator
        self.state = state
        self.throughput = Throughput(pictures)
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._main = accelerator.is_main_process
        self._writer: SummaryWriter | None = None
        self._open = ExitStack()
        self._bar = Progress(
            TextColumn(recipe.experiment.name),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[scalars]}"),
            disable=not self._main,
        )
        self._task = self._bar.add_task(
            "steps", total=recipe.training.max_train_steps, completed=state.step, scalars=""
        )

    def __enter__(self) -> RunLog:
        if self._main:
            self._open.enter_context(quiet_writers())
            with self._writing():
                self._writer = SummaryWriter(str(self.recipe.folder / "tensorboard"))
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        with self._open:
            if self._writer is not None:
                with self._writing() if error is None else suppress(OSError):
                    self._writer.close()

    def step(self, scalars: Mapping[str, Tensor]) -> None:
        """Count the step that `state` has just finished, with its scalars."""
        for key, value in scalars.items():
            self._sums[key] = self._sums.get(key, torch.zeros((), device=value.device)) + value.detach()
            self._counts[key] = self._counts.get(key, 0) + 1
        self.throughput.step()
        self._bar.update(self._task, completed=self.state.step)
        last = self.state.step == self.recipe.training.max_train_steps
        if last or self.state.step % self.recipe.experiment.log_every == 0:
            self._write_means()

    def _write_means(self) -> None:
        means = self.check_finite()
        self._sums, self._counts = {}, {}
        means |= {**self.throughput.report(), "skipped_samples": total(self.accelerator, self.state.skipped)}
        if examples := self.recipe.experiment.max_train_examples:
            means["epoch"] = self.state.step * self.throughput.pictures / examples
        self.scalars("train", means)
        shown = " ".join(f"{key} {means[key]:.4g}" for key in SHOWN if key in means)
        self._bar.update(self._task, scalars=shown)

    def check_finite(self) -> dict[str, float]:
        """Means of the scalars since they were last written, over all processes, which call this together.

        Raises TrainingError when one is not finite: the weights are lost then, and must not be saved.
        """
        if not self._sums:
            return {}
        own = torch.stack([total / self._counts[key] for key, total in self._sums.items()])
        everyone = self.accelerator.reduce(own, reduction="mean")
        assert isinstance(everyone, Tensor)
        means = dict(zip(self._sums, everyone.tolist(), strict=True))
        if wrong := [f"{key} is {value}" for key, value in means.items() if not np.isfinite(value)]:
            raise TrainingError(
                f"at or shortly before step {self.state.step} {', '.join(wrong)}; {self._last_good()}. "
                "A lower learning rate, a longer warm-up or fp32 may help"
            )
        return means

    def _last_good(self) -> str:
        kept = checkpoint_files(self.recipe.folder)
        return f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A block that writes; TrainingError where it cannot, for want of space for example."""
        try:
            yield
        except OSError as exc:
            raise TrainingError(
                f"{self.recipe.folder}: the run's log cannot be written ({exc.strerror or exc}); "
                f"{self._last_good()}"
            ) from exc

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A block whose time is not counted as training."""
        before = time.perf_counter()
        yield
        self.throughput.leave_out(time.perf_counter() - before)

    def scalars(self, prefix: str, values: Mapping[str, float]) -> None:
        """Write scalars at once."""
        if self._writer is not None:
            with self._writing():
                for key, value in values.items():
                    self._writer.add_scalar(f"{prefix}/{key}", value, self.state.step)

    def report(self, values: Mapping[str, float]) -> None:
        """Write evaluation results and print them above the bar."""
        self.scalars("eval", values)
        if self._main:
            self._bar.console.print(
                f"step {self.state.step}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items())
            )

    def pictures(self, name: str, images: Tensor, columns: int) -> None:
        """Save `images` f32 (n, 3, H, W) as a grid."""
        if self._writer is not None:
            step = self.state.step
            grid = picture_grid(images, columns)
            with self._writing():
                grid.save(self.recipe.folder / f"{name}-{step:08d}.png")
                self._writer.add_image(name, np.array(grid), step, dataformats="HWC")

    def gradient_norms(self, network: nn.Module) -> None:
        """Write the norm of every parameter's gradient; all processes call this together."""
        for key, parameter in network.named_parameters():
            if parameter.grad is not None:
                norm = whole(parameter.grad).norm()
                self.scalars("gradient", {key: float(norm)})
