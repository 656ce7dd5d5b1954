"""The folder of a run belongs to one recipe: whether a run starts there, goes on, or must be refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from models.errors import CheckpointError
from training.checkpoints import checkpoint_files, load_checkpoint
from training.recipe import Recipe

RECIPE_FILE = "recipe.json"
# What may change between two sittings of one run: where and how fast it runs, and how long. The schedule of
# the learning rate follows a new length.
FREE_KEYS = (
    "training.device",
    "training.max_train_steps",
    "training.compile",
    "training.activation_checkpointing",
    "training.num_generated_images",
    "dataset.pin_memory",
    "dataset.persistent_workers",
)
# Of the section `experiment`, which else may change, what decides the weights.
ORIGINS = ("experiment.init_checkpoint", "experiment.vqgan_checkpoint")


def claim_folder(recipe: Recipe, accelerator: Accelerator, *, resume: bool) -> Path | None:
    """The checkpoint to continue from, or None for a new run, whose recipe is then written to its folder.

    A folder that holds a run is continued only when `resume` is set. It is refused in any case when its
    recipe is another one but for FREE_KEYS and, except ORIGINS, the section `experiment`: two runs would
    share one name.
    """
    folder = recipe.folder
    files = checkpoint_files(folder)
    stored = _stored_recipe(folder, files)
    if stored is not None and (differs := difference(stored, json.loads(_text(recipe)))) is not None:
        way_out = "" if files else " or, as it holds no checkpoint, remove the folder"
        raise CheckpointError(
            f"{folder} belongs to a run with another {differs}; use another experiment.name{way_out}"
        )
    if files and not resume:
        raise CheckpointError(
            f"{folder} holds a run already; continue it with --resume or change experiment.name"
        )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / f"{RECIPE_FILE}.partial"
            partial.write_text(_text(recipe), encoding="utf-8")
            partial.replace(folder / RECIPE_FILE)
        except OSError as exc:
            raise CheckpointError(f"{folder}: the run's folder cannot be written ({exc.strerror})") from exc
    return files[-1] if files else None


def _stored_recipe(folder: Path, checkpoints: list[Path]) -> dict[str, Any] | None:
    """The recipe of the run in `folder`; None where there is no run."""
    file = folder / RECIPE_FILE
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return json.loads(json.dumps(load_checkpoint(checkpoints[-1])["recipe"])) if checkpoints else None
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"{file}: not a readable recipe ({exc})") from exc
    if not isinstance(stored, dict):
        raise CheckpointError(f"{file}: not a readable recipe, which is a mapping of sections")
    return stored


def _text(recipe: Recipe) -> str:
    return json.dumps(recipe.as_dict(), indent=1) + "\n"


def difference(stored: dict[str, Any], current: dict[str, Any]) -> str | None:
    """First key (or section that is one value) in which two recipes differ, other than what may change."""
    old, new = _flat(stored), _flat(current)
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return next((key for key in keys if not _may_change(key)), None)


def _may_change(key: str) -> bool:
    return key in FREE_KEYS or (key.startswith("experiment.") and key not in ORIGINS)


def _flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted key."""
    return {
        f"{section}.{key}" if isinstance(values, dict) else section: value
        for section, values in recipe.items()
        for key, value in (values.items() if isinstance(values, dict) else [(section, values)])
    }
