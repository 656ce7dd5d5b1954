"""Checkpoint files: written whole or not at all, whatever happens to the process or the disk."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from models.errors import CheckpointError
from tests.training_runs import assert_same, recipe_of
from training.checkpoints import (
    RunState,
    checkpoint_files,
    load_checkpoint,
    newest_checkpoint,
    restore,
    save_checkpoint,
)
from training.data.batch import Batch
from training.ema import Ema
from training.processes import processes
from training.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def accelerator(recipe: Recipe) -> Iterator[Accelerator]:
    with processes(recipe.training) as accelerator:
        yield accelerator


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    recipe: Recipe = recipe_of("classifier", tmp_path, tmp_path / "runs")
    recipe.folder.mkdir(parents=True)
    return recipe


def state_of(step: int) -> RunState:
    """A run whose weights, average, moments and position all say that it stands at `step`."""
    torch.manual_seed(step)
    network = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    state = RunState({"network": network}, {"network": optimizer}, Ema(network, 0.9), step)
    state.ema.update(network)
    state.position = {"part 0": [step, 1, 2, 3]}
    return state


def save(recipe: Recipe, accelerator: Accelerator, *steps: int) -> None:
    for step in steps:
        save_checkpoint(recipe, state_of(step), accelerator)


def test_what_was_saved_is_restored(recipe: Recipe, accelerator: Accelerator) -> None:
    saved, other = state_of(5), state_of(9)
    save_checkpoint(recipe, saved, accelerator)
    restore(recipe, other, newest_checkpoint(recipe.folder), accelerator)
    assert (other.step, other.position, other.ema.updates) == (5, {"part 0": [5, 1, 2, 3]}, 1)
    for left, right in (
        (saved.networks["network"], other.networks["network"]),
        (saved.ema.average, other.ema.average),
        (saved.optimizers["network"], other.optimizers["network"]),
    ):
        assert_same(left.state_dict(), right.state_dict())
    assert load_checkpoint(newest_checkpoint(recipe.folder))["recipe"] == recipe.as_dict()


def test_another_number_of_pictures_in_a_step_is_refused_however_it_comes_about(
    recipe: Recipe, accelerator: Accelerator
) -> None:
    save(recipe, accelerator, 1)
    path = newest_checkpoint(recipe.folder)
    loop = recipe.training
    assert load_checkpoint(path)["pictures_per_step"] == loop.per_gpu_batch_size == 4
    same = replace(loop, per_gpu_batch_size=2, gradient_accumulation_steps=2)
    restore(replace(recipe, training=same), state_of(2), path, accelerator)
    with pytest.raises(CheckpointError, match="saw 4 pictures in a step, this one would see 6") as caught:
        restore(replace(recipe, training=replace(same, per_gpu_batch_size=3)), state_of(2), path, accelerator)
    assert "\n" not in str(caught.value)


def test_skipped_samples_are_counted_on(recipe: Recipe, accelerator: Accelerator) -> None:
    first, second = state_of(1), state_of(2)
    first.skipped = 3
    save_checkpoint(recipe, first, accelerator)
    restore(recipe, second, newest_checkpoint(recipe.folder), accelerator)
    second.take(Batch(torch.zeros(1, 3, 4, 4), torch.zeros(1), skipped=2))
    assert second.skipped == 5


MISFITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "'network' is missing": lambda content: content["networks"].clear(),
    "'skipped' is missing": lambda content: content.pop("skipped"),
    "size mismatch for weight": lambda content: content["ema"].update(weight=torch.zeros(2, 4)),
    r"exp_avg is \(5, 4\) for weights of \(3, 4\)": lambda content: content["optimizers"]["network"]["state"][
        0
    ].update(exp_avg=torch.zeros(5, 4)),
    "does not fit": lambda content: content.update(networks=torch.zeros(3)),
    "int()": lambda content: content.update(step=None),
}


@pytest.mark.parametrize("reason", MISFITS)
def test_a_checkpoint_of_another_shape_is_one_clear_line(
    recipe: Recipe, accelerator: Accelerator, reason: str
) -> None:
    save(recipe, accelerator, 1)
    path = newest_checkpoint(recipe.folder)
    content = load_checkpoint(path)
    MISFITS[reason](content)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=reason) as caught:
        restore(recipe, state_of(2), path, accelerator)
    assert f"{path} does not fit the recipe (" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_two_newest_checkpoints_stay(recipe: Recipe, accelerator: Accelerator) -> None:
    save(recipe, accelerator, 1, 2, 30)
    names = ["checkpoint-00000002.pt", "checkpoint-00000030.pt"]
    assert [path.name for path in checkpoint_files(recipe.folder)] == names
    assert sorted(path.name for path in recipe.folder.iterdir()) == names


def test_unfinished_and_foreign_files_are_no_checkpoints(recipe: Recipe, accelerator: Accelerator) -> None:
    save(recipe, accelerator, 1)
    for name in (".checkpoint-00000002.pt.partial", "checkpoint-3.pt", "checkpoint-00000004.pt.bak"):
        (recipe.folder / name).write_bytes(b"x")
    assert newest_checkpoint(recipe.folder).name == "checkpoint-00000001.pt"


def test_a_folder_without_checkpoints_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint of a training run"):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_damaged_checkpoint_is_named(
    recipe: Recipe, accelerator: Accelerator, content: bytes | None
) -> None:
    save(recipe, accelerator, 1)
    (path,) = checkpoint_files(recipe.folder)
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2] if content is None else content)
    with pytest.raises(
        CheckpointError, match=r"checkpoint-00000001\.pt: not a readable checkpoint"
    ) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pt: not a readable checkpoint"):
        load_checkpoint(tmp_path / "none.pt")


def test_flipped_bytes_are_a_clear_error_wherever_they_are_noticed(
    recipe: Recipe, accelerator: Accelerator
) -> None:
    save(recipe, accelerator, 1)
    (path,) = checkpoint_files(recipe.folder)
    good = path.read_bytes()
    noticed: list[str] = []
    for place in range(0, len(good), len(good) // 200):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        try:
            load_checkpoint(path)
        except CheckpointError as exc:
            noticed.append(str(exc))
    assert len(noticed) > 20
    assert not any("\n" in message for message in noticed)


class Harmful:
    """Pickled as a call of `print`."""

    def __reduce__(self) -> tuple[object, ...]:
        return print, ("executed",)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"recipe": Harmful()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "x.pt")
    assert "executed" not in capsys.readouterr().out


def test_a_file_of_other_tensors_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of a training run, which holds recipe, step"):
        load_checkpoint(tmp_path / "x.pt")


def test_a_full_disk_leaves_the_last_good_checkpoint(recipe: Recipe, accelerator: Accelerator) -> None:
    save(recipe, accelerator, 1)
    (good,) = checkpoint_files(recipe.folder)
    before = good.read_bytes()
    (recipe.folder / ".checkpoint-00000002.pt.partial").symlink_to("/dev/full")
    with pytest.raises(CheckpointError) as caught:
        save(recipe, accelerator, 2)
    message = str(caught.value)
    assert "checkpoint-00000002.pt cannot be written (No space left on device)" in message
    assert message.endswith(f"the last good checkpoint is {good}")
    assert "\n" not in message
    assert [path.name for path in recipe.folder.iterdir()] == [good.name]
    assert good.read_bytes() == before
    save(recipe, accelerator, 2)
    assert len(checkpoint_files(recipe.folder)) == 2


def test_a_disk_that_fills_within_a_large_tensor_is_named_too(
    recipe: Recipe, accelerator: Accelerator
) -> None:
    state = state_of(1)
    state.networks["network"] = nn.Linear(1000, 200)
    (recipe.folder / ".checkpoint-00000001.pt.partial").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\); there is no"):
        save_checkpoint(recipe, state, accelerator)


def test_a_full_disk_at_the_first_checkpoint_says_that_there_is_none(
    recipe: Recipe, accelerator: Accelerator
) -> None:
    (recipe.folder / ".checkpoint-00000001.pt.partial").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"cannot be written .*; there is no earlier checkpoint"):
        save(recipe, accelerator, 1)


# Forks processes that save without pause and kills each at a random moment. Prints for each of them the last
# step whose save had returned and the size of what lay unfinished.
KILLED_SAVES = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from torch import nn
from training.checkpoints import RunState, save_checkpoint
from training.ema import Ema
from training.processes import processes
from tests.training_runs import recipe_of

torch.set_num_threads(1)
folder, kills = Path(sys.argv[1]), int(sys.argv[2])

def save_for_ever(name, report):
    recipe = recipe_of("classifier", folder, folder, experiment__name=name)
    recipe.folder.mkdir()
    network = nn.Linear(1000, 200)
    with processes(recipe.training) as accelerator:
        state = RunState({"network": network}, {}, Ema(network, 0.0))
        for step in range(1, 100_000):
            nn.init.constant_(network.weight, step)
            nn.init.constant_(network.bias, step)
            state.ema.update(network)
            state.step = step
            state.position = {"part": [step]}
            save_checkpoint(recipe, state, accelerator)
            os.write(report, step.to_bytes(4, "little"))

random.seed(0)
for kill in range(kills):
    heard, report = os.pipe()
    child = os.fork()
    if child == 0:
        save_for_ever(str(kill), report)
        os._exit(1)
    os.close(report)
    saved = os.read(heard, 4)
    time.sleep(random.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    while more := os.read(heard, 4):
        saved = more
    print(kill, int.from_bytes(saved, "little"), flush=True)
"""
KILLS = 15


def test_kills_during_saves_leave_a_whole_checkpoint_of_the_last_save_or_the_next(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_SAVES, str(tmp_path), str(KILLS)]
    output = subprocess.run(command, cwd=ROOT, check=True, timeout=100, capture_output=True, text=True).stdout
    saved = {name: int(step) for name, step in (line.split() for line in output.splitlines())}
    assert len(saved) == KILLS
    for name, step in saved.items():
        for file in checkpoint_files(tmp_path / name):
            content = load_checkpoint(file)
            found = content["step"]
            assert file.name == f"checkpoint-{found:08d}.pt"
            assert content["position"] == {"part": [found]}
            for tensors in (content["networks"]["network"], content["ema"]):
                assert all(bool((value == found).all()) for value in tensors.values())
        assert found in (step, step + 1)
    unfinished = [path for name in saved for path in (tmp_path / name).glob("*.partial")]
    assert unfinished  # some were killed while they wrote
