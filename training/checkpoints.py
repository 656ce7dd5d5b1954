"""Checkpoints of a training run: one file per saved step, written completely or not at all."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.errors import CheckpointError
from training.config import Recipe
from training.ema import Ema

KEEP = 2  # newest checkpoints that stay on disk
CONTENT = ("recipe", "step", "network", "ema", "ema_updates", "optimizer")
# What may change between two sittings of one run. The first two move it and do not change its numbers; a run
# may also be lengthened or cut short, and its learning-rate schedule then follows the new length.
FREE_KEYS = ("training.device", "dataset.workers", "training.max_train_steps")


def checkpoint_files(folder: Path) -> list[Path]:
    """Finished checkpoints in the run's `folder`, oldest first."""
    return sorted(p for p in folder.glob("checkpoint-*.pt") if re.fullmatch(r"checkpoint-\d{8}\.pt", p.name))


def save_checkpoint(
    recipe: Recipe, step: int, network: nn.Module, ema: Ema[Any], optimizer: torch.optim.Optimizer
) -> Path:
    """Write the state after `step` optimizer steps; a kill in the middle leaves older checkpoints alone."""
    folder = recipe.folder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"checkpoint-{step:08d}.pt"
    partial = path.with_suffix(".partial")
    state = {
        "recipe": recipe.as_dict(),
        "step": step,
        "network": network.state_dict(),
        "ema": ema.average.state_dict(),
        "ema_updates": ema.updates,
        "optimizer": optimizer.state_dict(),
    }
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    for old in checkpoint_files(folder)[:-KEEP]:
        old.unlink()
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Content of a checkpoint file, on the CPU; nothing in the file is executed.

    Raises CheckpointError for a file that is missing, damaged or something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as exc:
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason})") from exc
    if not isinstance(state, dict) or not set(CONTENT) <= set(state):
        raise CheckpointError(f"{path}: not a checkpoint of a training run, which holds {', '.join(CONTENT)}")
    return state


def resume_step(
    recipe: Recipe, network: nn.Module, ema: Ema[Any], optimizer: torch.optim.Optimizer, *, resume: bool
) -> int:
    """Steps already done: 0 for a new run, else those of the newest checkpoint, loaded into the arguments.

    A folder with checkpoints is continued only when `resume` is set and its recipe is the same but for the
    section `experiment` and FREE_KEYS; otherwise two different runs would share one name.
    """
    files = checkpoint_files(recipe.folder)
    if not files:
        return 0
    if not resume:
        raise CheckpointError(
            f"{recipe.folder} holds a run already; continue it with --resume or change experiment.name"
        )
    state = load_checkpoint(files[-1])
    if (differs := _difference(state["recipe"], recipe.as_dict())) is not None:
        raise CheckpointError(f"{files[-1]} was written with another {differs}; use another experiment.name")
    network.load_state_dict(state["network"])
    ema.average.load_state_dict(state["ema"])
    ema.updates = state["ema_updates"]
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _difference(stored: dict[str, Any], current: dict[str, Any]) -> str | None:
    """First key (or section that is one value) in which two recipes differ, other than what may change."""
    old, new = _flat(stored), _flat(current)
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return next((key for key in keys if key not in FREE_KEYS and not key.startswith("experiment.")), None)


def _flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted key."""
    return {
        f"{section}.{key}" if isinstance(values, dict) else section: value
        for section, values in recipe.items()
        for key, value in (values.items() if isinstance(values, dict) else [(section, values)])
    }
