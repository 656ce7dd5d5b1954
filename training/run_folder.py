"""The folder of a run belongs to one recipe: whether a run starts there, goes on, or must be refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from models.errors import CheckpointError
from models.whole_file import whole_file
from training.checkpoints import checkpoint_files, load_checkpoint
from training.recipe import Recipe

RECIPE_FILE = "recipe.json"
# What may change between two sittings of one run: where and how fast it runs, how long, and what it reads.
# The schedule of the learning rate follows a new length; the batch may be divided otherwise, but `restore`
# refuses another number of pictures in a step.
FREE_KEYS = (
    "training.device",
    "training.max_train_steps",
    "training.compile",
    "training.activation_checkpointing",
    "training.num_generated_images",
    "training.per_gpu_batch_size",
    "training.gradient_accumulation_steps",
    "dataset.train_shards_path_or_url",
    "dataset.eval_shards_path_or_url",
    "dataset.token_cache",
    "dataset.shuffle_buffer_size",
    "dataset.num_workers_per_gpu",
    "dataset.parts",
    "dataset.pin_memory",
    "dataset.persistent_workers",
)
# Of the section `experiment`, which else may change, what decides the weights.
ORIGINS = ("experiment.init_checkpoint", "experiment.vqgan_checkpoint")


def claim_folder(recipe: Recipe, accelerator: Accelerator, *, resume: bool) -> Path | None:
    """The checkpoint to continue from, or None for a new run, whose recipe is then written to its folder.

    A folder that holds a run is continued only when `resume` is set. It is refused in any case when its
    recipe is another one but for FREE_KEYS and, except ORIGINS, the section `experiment`: two runs would
    share one name. All processes call this together; CheckpointError also, in all, when they differ in the
    recipe or in what they see in the folder.
    """
    folder = recipe.folder
    files = checkpoint_files(folder)
    _check_agreement(recipe, files)
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
            with whole_file(folder / RECIPE_FILE) as file:
                file.write(_text(recipe).encode())
        except OSError as exc:
            raise CheckpointError(f"{folder}: the run's folder cannot be written ({exc.strerror})") from exc
    return files[-1] if files else None


def _check_agreement(recipe: Recipe, checkpoints: list[Path]) -> None:
    """Raise CheckpointError in all processes unless all were given one recipe and see one folder."""
    try:
        stored = (recipe.folder / RECIPE_FILE).read_bytes()
    except OSError:
        stored = b""
    newest = checkpoints[-1].name if checkpoints else "no checkpoint"
    own = (_digest(_text(recipe).encode()), newest, _digest(stored))
    everyone: list[tuple[str, str, str]] = gather_object([own])
    if len({given for given, *_ in everyone}) > 1:
        raise CheckpointError("the processes were started with different recipes; give all of them the same")
    if len(seen := {f"{name}, recipe {digest}" for _, name, digest in everyone}) > 1:
        raise CheckpointError(
            f"the processes see different run folders at {recipe.folder}: {' / '.join(sorted(seen))}; "
            "set experiment.output_dir to a folder that all nodes share"
        )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8] if content else "none"


def _stored_recipe(folder: Path, checkpoints: list[Path]) -> dict[str, Any] | None:
    """The recipe of the run in `folder`; None where there is no run.

    Of its file if that is sound, else of its newest checkpoint.
    """
    try:
        stored = json.loads((folder / RECIPE_FILE).read_text(encoding="utf-8"))
        if isinstance(stored, dict):
            return stored
    except (OSError, ValueError):
        pass
    return json.loads(json.dumps(load_checkpoint(checkpoints[-1])["recipe"])) if checkpoints else None


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
