"""Checkpoints of a training run: one file per saved step, written completely or not at all."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from models.errors import CheckpointError
from models.whole_file import whole_file
from training.data.batch import Batch
from training.ema import Ema
from training.optimization import pictures_per_step
from training.processes import merged, total
from training.recipe import Recipe
from training.sharding import load_network, load_optimizer, network_state, optimizer_state

KEEP = 2  # newest checkpoints that stay on disk
CONTENT = ("recipe", "step", "networks", "ema", "ema_updates", "optimizers", "position")


@dataclass
class RunState:
    """Everything of a run that changes: modules and optimizers by name, as `Accelerator.prepare` gave them.

    The optimizer of a module bears its name. `position` is where the data stream stands, which only the
    stream's own code reads. `step` counts finished optimizer steps, `skipped` the samples that could not be
    used: those of this process since it started and, in the main one, all of earlier sittings.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    ema: Ema[Any]
    step: int = 0
    position: dict[str, Any] = field(default_factory=dict)
    skipped: int = 0

    def take(self, batch: Batch) -> None:
        """Note that `batch` was taken from the data stream."""
        self.position = dict(batch.position)
        self.skipped += batch.skipped


def checkpoint_files(folder: Path) -> list[Path]:
    """Finished checkpoints in the run's `folder`, oldest first."""
    return sorted(p for p in folder.glob("checkpoint-*.pt") if re.fullmatch(r"checkpoint-\d{8}\.pt", p.name))


def newest_checkpoint(path: Path) -> Path:
    """`path` itself if it is a file, else the newest checkpoint of the run folder `path`."""
    if path.is_file():
        return path
    files = checkpoint_files(path)
    if not files:
        raise CheckpointError(f"{path} holds no checkpoint of a training run")
    return files[-1]


def save_checkpoint(recipe: Recipe, state: RunState, accelerator: Accelerator) -> None:
    """Write `state`; a kill in the middle leaves older checkpoints alone. All processes call this together.

    Raises CheckpointError when the file cannot be written, for want of space for example.
    """
    content = {
        "recipe": recipe.as_dict(),
        "step": state.step,
        "networks": {name: network_state(module) for name, module in state.networks.items()},
        "ema": state.ema.average.state_dict(),
        "ema_updates": state.ema.updates,
        "optimizers": {
            name: optimizer_state(state.networks[name], optimizer)
            for name, optimizer in state.optimizers.items()
        },
        "position": merged(accelerator, state.position),
        "skipped": total(accelerator, state.skipped),
        "pictures_per_step": pictures_per_step(recipe, accelerator),
    }
    if accelerator.is_main_process:
        _write(recipe.folder, state.step, content)
    accelerator.wait_for_everyone()


def _write(folder: Path, step: int, content: dict[str, Any]) -> None:
    path = folder / f"checkpoint-{step:08d}.pt"
    try:
        with whole_file(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as exc:  # a full disk makes torch raise either
        kept = checkpoint_files(folder)
        last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no earlier checkpoint"
        raise CheckpointError(f"{path} cannot be written ({_reason(exc)}); {last}") from exc
    for old in checkpoint_files(folder)[:-KEEP]:
        old.unlink()


def _reason(error: BaseException) -> str:
    """What the system says where an error goes back to it, else the error itself, in one line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split())[:200]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Content of a checkpoint file, on the CPU; nothing in the file is executed.

    Raises CheckpointError for a file that is missing, damaged or something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:
        # A damaged pickle raises whatever its bytes come to.
        reason = f"{type(exc).__name__}: {_reason(exc)}"
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason})") from exc
    if not isinstance(state, dict) or not set(CONTENT) <= set(state):
        raise CheckpointError(f"{path}: not a checkpoint of a training run, which holds {', '.join(CONTENT)}")
    return state


def restore(recipe: Recipe, state: RunState, path: Path, accelerator: Accelerator) -> None:
    """Load the checkpoint `path` into `state`, whose modules and optimizers have the stored names.

    Raises CheckpointError for a checkpoint of other networks, and when a step now sees another number of
    pictures than it did: steps are what the schedules count.
    """
    stored = load_checkpoint(path)
    try:
        before = stored["pictures_per_step"]
        _fill(state, stored, accelerator)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as exc:
        reason = f"{exc} is missing" if isinstance(exc, KeyError) else _reason(exc)
        raise CheckpointError(f"{path} does not fit the recipe ({reason})") from exc
    if before != (now := pictures_per_step(recipe, accelerator)):
        raise CheckpointError(
            f"{path}: its run saw {before} pictures in a step, this one would see {now} "
            f"({accelerator.num_processes} processes); training.per_gpu_batch_size or "
            "training.gradient_accumulation_steps can make up for it"
        )


def _fill(state: RunState, stored: dict[str, Any], accelerator: Accelerator) -> None:
    for name, module in state.networks.items():
        load_network(module, stored["networks"][name])
    for name, optimizer in state.optimizers.items():
        load_optimizer(state.networks[name], optimizer, stored["optimizers"][name])
    state.ema.average.load_state_dict(stored["ema"])
    state.ema.updates = int(stored["ema_updates"])
    state.step = int(stored["step"])
    state.position = dict(stored["position"])
    state.skipped = int(stored["skipped"]) if accelerator.is_main_process else 0
