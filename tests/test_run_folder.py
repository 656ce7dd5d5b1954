"""A run's name belongs to one recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from torch import nn

from models.errors import CheckpointError
from tests.published_recipes import write_published
from tests.training_runs import recipe_of, run_processes
from training.checkpoints import RunState, save_checkpoint
from training.ema import Ema
from training.processes import processes
from training.recipe import Recipe
from training.recipe_file import build_recipe, load_values
from training.run_folder import FREE_KEYS, RECIPE_FILE, claim_folder


@pytest.fixture
def accelerator(tmp_path: Path) -> Iterator[Accelerator]:
    with processes(recipe_of("classifier", tmp_path, tmp_path).training) as accelerator:
        yield accelerator


def saved(recipe: Recipe, accelerator: Accelerator, step: int = 1) -> None:
    network = nn.Linear(1, 1)
    save_checkpoint(recipe, RunState({"network": network}, {}, Ema(network, 0.0), step), accelerator)


def test_a_new_run_writes_its_recipe_and_starts_from_nothing(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    recipe = recipe_of("tokenizer", tmp_path, tmp_path)
    for resume in (False, True):
        assert claim_folder(recipe, accelerator, resume=resume) is None
    stored = json.loads((recipe.folder / RECIPE_FILE).read_text())
    assert stored == json.loads(json.dumps(recipe.as_dict()))
    assert [path.name for path in recipe.folder.iterdir()] == [RECIPE_FILE]


def test_a_run_with_checkpoints_is_continued_only_on_demand(tmp_path: Path, accelerator: Accelerator) -> None:
    recipe = recipe_of("tokenizer", tmp_path, tmp_path)
    claim_folder(recipe, accelerator, resume=False)
    saved(recipe, accelerator, 2)
    saved(recipe, accelerator, 4)
    newest = recipe.folder / "checkpoint-00000004.pt"
    assert claim_folder(recipe, accelerator, resume=True) == newest
    with pytest.raises(CheckpointError, match="holds a run already; continue it with --resume or change"):
        claim_folder(recipe, accelerator, resume=False)


CHANGES = [
    ("tokenizer", {"optimizer__params__learning_rate": 0.5}, "optimizer.learning_rate"),
    ("tokenizer", {"training__ema_decay": 0.5}, "training.ema_decay"),
    ("tokenizer", {"training__mixed_precision": "bf16"}, "training.mixed_precision"),
    ("tokenizer", {"dataset__preprocessing__flip": False}, "dataset.flip"),
    ("tokenizer", {"losses__reconstruction_weight": 1.0}, "losses.reconstruction_weight"),
    ("tokenizer", {"model__vq_model__token_size": 5}, "model.token_size"),
    ("tokenizer", {"model__discriminator": {"num_stages": 2}}, "discriminator.blur_kernel_size"),
    ("tokenizer", {"experiment__init_checkpoint": "other"}, "experiment.init_checkpoint"),
    ("generator", {"experiment__vqgan_checkpoint": "other"}, "experiment.vqgan_checkpoint"),
    ("generator", {"losses__mlm__loss_on": "masked"}, "losses.loss_on"),
]


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize(("kind", "change", "key"), CHANGES)
def test_another_recipe_is_refused_by_the_key_that_differs_with_or_without_a_checkpoint(
    tmp_path: Path, accelerator: Accelerator, kind: str, change: dict[str, Any], key: str, save: bool
) -> None:
    recipe = recipe_of(kind, tmp_path, tmp_path)
    claim_folder(recipe, accelerator, resume=False)
    if save:
        saved(recipe, accelerator)
    before = (recipe.folder / RECIPE_FILE).read_bytes()
    message = f"belongs to a run with another {key}; use another experiment.name" + (
        "$" if save else " or, as it holds no checkpoint, remove the folder$"
    )
    for resume in (False, True):
        with pytest.raises(CheckpointError, match=message):
            claim_folder(recipe_of(kind, tmp_path, tmp_path, **change), accelerator, resume=resume)
    assert (recipe.folder / RECIPE_FILE).read_bytes() == before


def test_a_run_of_another_kind_is_refused(tmp_path: Path, accelerator: Accelerator) -> None:
    claim_folder(recipe_of("tokenizer", tmp_path, tmp_path), accelerator, resume=False)
    with pytest.raises(CheckpointError, match="belongs to a run with another"):
        claim_folder(recipe_of("classifier", tmp_path, tmp_path), accelerator, resume=True)


def test_two_published_files_that_share_a_name_do_not_share_a_folder(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    for name in ("vqgan_plus_10bit", "vqgan_plus_12bit"):
        values = load_values(write_published(tmp_path, name), [f"experiment.output_dir={tmp_path}"])
        recipe = build_recipe("tokenizer", values)
        assert recipe.folder == tmp_path / "vqgan_plus_10bit"
        if name == "vqgan_plus_10bit":
            claim_folder(recipe, accelerator, resume=recipe.experiment.resume)
    with pytest.raises(CheckpointError, match=r"belongs to a run with another model\.codebook_size"):
        claim_folder(recipe, accelerator, resume=recipe.experiment.resume)


FREE = {
    "training.device": "auto",
    "training.max_train_steps": 400,
    "training.compile": True,
    "training.activation_checkpointing": True,
    "training.num_generated_images": 3,
    "dataset.pin_memory": True,
    "dataset.persistent_workers": False,
    "training.per_gpu_batch_size": 2,
    "training.gradient_accumulation_steps": 2,
    "dataset.train_shards_path_or_url": "others",
    "dataset.eval_shards_path_or_url": "others",
    "dataset.token_cache": "cache",
    "dataset.shuffle_buffer_size": 3,
    "dataset.num_workers_per_gpu": 2,
    "dataset.parts": 2,
}


def test_pace_length_data_and_reports_may_change(tmp_path: Path, accelerator: Accelerator) -> None:
    assert set(FREE) == set(FREE_KEYS)
    recipe = recipe_of("generator", tmp_path, tmp_path)
    claim_folder(recipe, accelerator, resume=False)
    saved(recipe, accelerator)
    changes = {key.replace("dataset.", "dataset.params.").replace(".", "__"): FREE[key] for key in FREE}
    changes |= {"experiment__save_every": 7, "experiment__log_every": 1, "experiment__resume": True}
    changed = recipe_of("generator", tmp_path, tmp_path, **changes)
    assert claim_folder(changed, accelerator, resume=True) is not None
    assert json.loads((recipe.folder / RECIPE_FILE).read_text())["training"]["max_train_steps"] == 400


def test_a_copied_checkpoint_alone_still_tells_its_recipe(tmp_path: Path, accelerator: Accelerator) -> None:
    recipe = recipe_of("tokenizer", tmp_path, tmp_path)
    claim_folder(recipe, accelerator, resume=False)
    saved(recipe, accelerator)
    (recipe.folder / RECIPE_FILE).unlink()
    other = recipe_of("tokenizer", tmp_path, tmp_path, training__seed=8)
    with pytest.raises(CheckpointError, match=r"another training\.seed"):
        claim_folder(other, accelerator, resume=True)
    assert claim_folder(recipe, accelerator, resume=True) is not None


@pytest.mark.parametrize("content", [b"", b'{"experiment": {', b"[1]", b"\xff"])
def test_a_damaged_recipe_gives_way_to_that_of_the_checkpoint(
    tmp_path: Path, accelerator: Accelerator, content: bytes
) -> None:
    recipe = recipe_of("tokenizer", tmp_path, tmp_path)
    other = recipe_of("tokenizer", tmp_path, tmp_path, training__seed=8)
    recipe.folder.mkdir()
    file = recipe.folder / RECIPE_FILE
    file.write_bytes(content)
    assert claim_folder(recipe, accelerator, resume=True) is None
    saved(recipe, accelerator)
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"another training\.seed"):
        claim_folder(other, accelerator, resume=True)
    assert file.read_bytes() == content
    assert claim_folder(recipe, accelerator, resume=True) is not None
    assert json.loads(file.read_text()) == json.loads(json.dumps(recipe.as_dict()))


def test_a_kill_while_the_recipe_is_written_leaves_the_older_one(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("tokenizer", tmp_path, tmp_path)
    claim_folder(recipe, accelerator, resume=False)
    before = (recipe.folder / RECIPE_FILE).read_bytes()

    def killed(handle: int) -> None:
        os.ftruncate(handle, 20)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        claim_folder(recipe, accelerator, resume=False)
    assert (recipe.folder / RECIPE_FILE).read_bytes() == before


# Two processes whose working folders differ claim one and the same relative folder, which holds a checkpoint
# for the first alone; then each with a recipe of its own. Writes what each of them was told.
CLAIMS = """
import json, os, sys
from pathlib import Path
from models.errors import CheckpointError
from tests.training_runs import recipe_of
from training.processes import processes
from training.run_folder import claim_folder

folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
here = folder / str(rank)
here.mkdir()
os.chdir(here)
if rank == 0:
    Path("runs/run").mkdir(parents=True)
    Path("runs/run/checkpoint-00000003.pt").touch()
told = []
with processes(recipe_of("classifier", folder, Path("runs")).training) as accelerator:
    for seed in (7, rank):
        try:
            recipe = recipe_of("classifier", folder, Path("runs"), training__seed=seed)
            claim_folder(recipe, accelerator, resume=True)
        except CheckpointError as exc:
            told.append(str(exc))
(folder / f"{rank}.json").write_text(json.dumps(told))
"""


def test_processes_that_see_different_folders_or_recipes_are_all_refused(tmp_path: Path) -> None:
    run_processes(2, CLAIMS, tmp_path, str(tmp_path))
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    folders, recipes = told[0]
    assert folders == (
        "the processes see different run folders at runs/run: checkpoint-00000003.pt, recipe none / "
        "no checkpoint, recipe none; set experiment.output_dir to a folder that all nodes share"
    )
    assert "different recipes" in recipes


def test_a_folder_that_cannot_be_made_is_one_clear_message(tmp_path: Path, accelerator: Accelerator) -> None:
    (tmp_path / "file").write_text("")
    recipe = recipe_of("tokenizer", tmp_path, tmp_path / "file")
    with pytest.raises(CheckpointError, match="the run's folder cannot be written"):
        claim_folder(recipe, accelerator, resume=False)
