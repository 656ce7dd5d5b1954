"""A run that was stopped and continued is the run that was never stopped, bit for bit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from models.errors import CheckpointError
from tests.training_fixtures import recipe_values
from tests.training_runs import (
    ADVERSARY,
    KINDS,
    TRAIN,
    assert_same,
    numbers_of,
    recipe_of,
    write_data,
)
from training.cache.building import build_cache
from training.checkpoints import checkpoint_files, load_checkpoint
from training.recipe_file import build_recipe, load_values

ROOT = Path(__file__).resolve().parents[1]
HALF, WHOLE = 3, 6  # steps


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, a tokenizer, and a cache of its tokens."""
    folder = write_data(tmp_path_factory.mktemp("data"))
    build_cache(recipe_of("generator", folder, folder), folder / "cache", crops=2, store_flips=False)
    return folder


def halves(kind: str, data: Path, output: Path, **changes: Any) -> Any:
    """A recipe of WHOLE steps that saves at every HALF, and augments, drops and warms up on the way."""
    settings = {"training__max_train_steps": WHOLE, "experiment__save_every": HALF, **changes}
    return recipe_of(kind, data, output, **settings)


ACCUMULATED = {"training__gradient_accumulation_steps": 2, "training__per_gpu_batch_size": 2}
LOADERS = {"dataset__params__num_workers_per_gpu": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "tokenizer": ("tokenizer", LOADERS),
    "tokenizer with its adversary": ("tokenizer", {**ADVERSARY, **ACCUMULATED}),
    "tokenizer, adversary after the stop": (
        "tokenizer",
        {**ADVERSARY, "losses__discriminator_start": HALF + 1},
    ),
    "lookup tokenizer": (
        "tokenizer",
        {"model__vq_model__quantizer_type": "lookup", "model__vq_model__codebook_size": 16},
    ),
    "generator": ("generator", {**LOADERS, **ACCUMULATED, "dataset__params__parts": 2}),
    "generator in half precision": ("generator", {"training__mixed_precision": "bf16"}),
    "generator on one batch": (
        "generator",
        {"training__overfit_batch": True, "training__overfit_batch_num": 2},
    ),
    "generator without average": ("generator", {"training__use_ema": False}),
    "generator from a cache": ("generator", {"dataset__params__token_cache": "cache", **ACCUMULATED}),
    "classifier": ("classifier", {**LOADERS, **ACCUMULATED}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_bit_equal_to_one_that_was_never_stopped(
    case: str, data: Path, tmp_path: Path
) -> None:
    kind, changes = CASES[case]
    if "dataset__params__token_cache" in changes:
        changes = {**changes, "dataset__params__token_cache": str(data / "cache")}
    recipe = halves(kind, data, tmp_path, **changes)
    uninterrupted = TRAIN[kind](recipe)
    half, full = checkpoint_files(recipe.folder)
    assert half.name == f"checkpoint-{HALF:08d}.pt"
    before, expected = numbers_of(half), numbers_of(full)

    full.unlink()  # and what a kill in the middle of its save leaves behind; reports may be paced otherwise
    (recipe.folder / f".{full.name}.partial").write_bytes(half.read_bytes()[:5000])
    paced = {"experiment__log_every": 1, "experiment__generate_every": 5, "training__num_generated_images": 2}
    resumed = TRAIN[kind](halves(kind, data, tmp_path, **changes, **paced), resume=True)

    assert_same(numbers_of(recipe.folder), expected)
    assert_same(resumed.state_dict(), uninterrupted.state_dict())
    weights = expected["networks"][kind]
    assert any(not torch.equal(value, weights[key]) for key, value in before["networks"][kind].items())
    if "token_cache" not in str(changes):
        assert expected["position"]
    if not changes.get("training__overfit_batch"):
        assert (before["position"] != expected["position"]) or "token_cache" in str(changes)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_of_the_global_generator_changes_nothing(kind: str, data: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = TRAIN[kind](recipe_of(kind, data, tmp_path / "a"))
    torch.manual_seed(2)
    assert_same(TRAIN[kind](recipe_of(kind, data, tmp_path / "b")).state_dict(), first.state_dict())


def test_a_run_goes_on_with_its_batch_divided_otherwise(data: Path, tmp_path: Path) -> None:
    """Its accumulated halves make the same tokens, masks and total."""
    shared = {"model__mlm_model__dropout": 0.0, "dataset__params__token_cache": str(data / "cache")}
    networks = []
    for name, changes in (("whole", {}), ("halves", ACCUMULATED)):
        recipe = halves("generator", data, tmp_path / name, **shared)
        TRAIN["generator"](recipe)
        checkpoint_files(recipe.folder)[-1].unlink()
        networks.append(
            TRAIN["generator"](halves("generator", data, tmp_path / name, **shared, **changes), resume=True)
        )
    for key, value in networks[0].state_dict().items():
        assert torch.allclose(networks[1].state_dict()[key], value, atol=2e-4), key


def test_another_total_batch_is_refused(data: Path, tmp_path: Path) -> None:
    recipe = halves("classifier", data, tmp_path)
    TRAIN["classifier"](recipe)
    doubled = halves("classifier", data, tmp_path, training__per_gpu_batch_size=8)
    with pytest.raises(CheckpointError, match="saw 4 pictures in a step, this one would see 8"):
        TRAIN["classifier"](doubled, resume=True)


@pytest.mark.parametrize(
    "change",
    [
        {"dataset__params__num_workers_per_gpu": 2},
        {"dataset__params__shuffle_buffer_size": 3},
        {"dataset__params__parts": 2},
        {"dataset__params__train_shards_path_or_url": "moved"},
    ],
)
def test_a_run_goes_on_with_data_divided_otherwise_from_the_next_epoch(
    data: Path, tmp_path: Path, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    recipe = halves("classifier", data, tmp_path)
    TRAIN["classifier"](recipe)
    checkpoint_files(recipe.folder)[-1].unlink()
    if change.get("dataset__params__train_shards_path_or_url"):
        for shard in data.glob("train-*.tar"):
            shutil.copy(shard, tmp_path / f"moved-{shard.name}")
        change = {"dataset__params__train_shards_path_or_url": str(tmp_path / "moved-*.tar")}
    TRAIN["classifier"](halves("classifier", data, tmp_path, **change), resume=True)
    assert "reading continues with epoch 1" in caplog.text
    assert numbers_of(recipe.folder)["step"] == WHOLE


@pytest.mark.parametrize("first", ["cache", "pictures"])
def test_a_run_goes_on_with_pictures_after_tokens_and_the_other_way_round(
    data: Path, tmp_path: Path, first: str
) -> None:
    for source in ("cache", "pictures") if first == "cache" else ("pictures", "cache"):
        cache = str(data / "cache") if source == "cache" else None
        recipe = halves("generator", data, tmp_path, dataset__params__token_cache=cache)
        TRAIN["generator"](recipe, resume=True)
        if source == first:
            checkpoint_files(recipe.folder)[-1].unlink()
    assert numbers_of(recipe.folder)["step"] == WHOLE


def test_a_finished_run_is_resumed_without_another_step(data: Path, tmp_path: Path) -> None:
    recipe = recipe_of("generator", data, tmp_path)
    network = TRAIN["generator"](recipe)
    before = [path.read_bytes() for path in checkpoint_files(recipe.folder)]
    assert_same(TRAIN["generator"](recipe, resume=True).state_dict(), network.state_dict())
    assert [path.read_bytes() for path in checkpoint_files(recipe.folder)] == before


def test_a_run_is_not_overwritten_without_resume(data: Path, tmp_path: Path) -> None:
    recipe = recipe_of("classifier", data, tmp_path)
    TRAIN["classifier"](recipe)
    before = checkpoint_files(recipe.folder)[-1].read_bytes()
    with pytest.raises(CheckpointError, match="holds a run already; continue it with --resume"):
        TRAIN["classifier"](recipe)
    assert checkpoint_files(recipe.folder)[-1].read_bytes() == before


# Forks a run for each (point, save): it is killed at that point of that save. Points: half of the file is
# written; all of it, not yet under its name; under its name, before the folder is synced.
KILLED_RUNS = """
import os, signal, sys
from pathlib import Path
import torch
from training.recipe_file import build_recipe, load_values

torch.set_num_threads(1)
from models import whole_file
from training import checkpoints
from training.generator_loop import train_generator

def killing(function, when, number):
    calls = []
    def call(*arguments):
        calls.append(arguments)
        if len(calls) == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments)
        if len(calls) == number and when == "half":
            file = arguments[1]
            file.flush()
            os.ftruncate(file.fileno(), os.fstat(file.fileno()).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

recipe, saves = sys.argv[1], int(sys.argv[2])
for point in sys.argv[3:]:
    child = os.fork()
    if child == 0:
        if point == "half":
            checkpoints.torch.save = killing(checkpoints.torch.save, "half", saves)
        elif point == "unnamed":
            Path.replace = killing(Path.replace, "before", saves + 1)  # the first is the recipe's
        else:
            whole_file.sync_folder = killing(whole_file.sync_folder, "before", saves + 1)
        train_generator(build_recipe("generator", load_values(recipe, [f"experiment.name={point}"])))
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
"""
SAVE_EVERY, SAVES = 2, 2


def test_a_run_killed_in_a_save_loses_no_more_than_its_steps_and_ends_as_an_undisturbed_one(
    data: Path, tmp_path: Path
) -> None:
    changes = {"experiment__save_every": SAVE_EVERY, "training__max_train_steps": WHOLE}
    changes["experiment__vqgan_checkpoint"] = str(data / "tokenizer.safetensors")  # type: ignore[assignment]
    values = recipe_values("generator", data, tmp_path, **changes)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    undisturbed = TRAIN["generator"](
        build_recipe("generator", load_values(str(tmp_path / "recipe.yaml"), []))
    )

    points = {"half": SAVES - 1, "unnamed": SAVES - 1, "named": SAVES}  # saves that count
    command = [sys.executable, "-c", KILLED_RUNS, str(tmp_path / "recipe.yaml"), str(SAVES), *points]
    subprocess.run(command, cwd=ROOT, check=True, timeout=110, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for point, saves in points.items():
        folder = tmp_path / point
        assert load_checkpoint(checkpoint_files(folder)[-1])["step"] == saves * SAVE_EVERY
        assert list(folder.glob("*.partial")) or point == "named"
        overrides = [f"experiment.name={point}"]
        recipe = build_recipe("generator", load_values(str(tmp_path / "recipe.yaml"), overrides))
        resumed = TRAIN["generator"](recipe, resume=True)
        assert_same(resumed.state_dict(), undisturbed.state_dict())
        assert_same(numbers_of(folder), numbers_of(tmp_path / "run"))


def test_a_moved_run_continues_where_it_stood(data: Path, tmp_path: Path) -> None:
    recipe = halves("classifier", data, tmp_path / "old")
    TRAIN["classifier"](recipe)
    expected = numbers_of(recipe.folder)
    checkpoint_files(recipe.folder)[-1].unlink()
    shutil.move(tmp_path / "old", tmp_path / "new")
    TRAIN["classifier"](halves("classifier", data, tmp_path / "new"), resume=True)
    assert_same(numbers_of(tmp_path / "new" / "run"), expected)
