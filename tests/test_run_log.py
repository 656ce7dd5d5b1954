"""What a run tells, and what stops it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from models.errors import TrainingError
from tests.training_runs import ROOT, curve, recipe_of, scalars
from training.checkpoints import RunState, save_checkpoint
from training.ema import Ema
from training.processes import processes
from training.quiet_writers import quiet_writers
from training.recipe import Recipe
from training.run_log import RunLog


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    changes: dict[str, Any] = {"experiment__log_every": 2, "experiment__max_train_examples": 40}
    recipe: Recipe = recipe_of("classifier", tmp_path, tmp_path, **changes)
    recipe.folder.mkdir()
    return recipe


@pytest.fixture
def accelerator(recipe: Recipe) -> Iterator[Accelerator]:
    with processes(recipe.training) as accelerator:
        yield accelerator


@pytest.fixture
def state() -> RunState:
    network = nn.Linear(2, 1)
    return RunState({"network": network}, {}, Ema(network, 0.0))


def count(log: RunLog, *losses: float) -> None:
    for loss in losses:
        log.state.step += 1
        log.step({"loss": torch.tensor(float(loss), requires_grad=True)})


def test_scalars_are_means_over_the_steps_since_they_were_last_written(
    recipe: Recipe, accelerator: Accelerator, state: RunState
) -> None:
    with RunLog(recipe, accelerator, state, pictures=8) as log:
        state.skipped = 3
        count(log, 1, 2, 5, 7, 100)
    assert scalars(recipe.folder, "train/loss") == [(2, 1.5), (4, 6)]
    assert scalars(recipe.folder, "train/skipped_samples") == [(2, 3), (4, 3)]
    assert curve(recipe.folder, "train/epoch") == pytest.approx([0.4, 0.8])
    assert [step for step, _ in scalars(recipe.folder, "train/images_per_s")] == [2, 4]
    assert all(0 <= share < 1 for _, share in scalars(recipe.folder, "train/data_share"))


def test_the_last_step_writes_what_is_left(tmp_path: Path) -> None:
    recipe = recipe_of("classifier", tmp_path, tmp_path, experiment__log_every=3)
    network = nn.Linear(2, 1)
    with (
        processes(recipe.training) as accelerator,
        RunLog(recipe, accelerator, RunState({}, {}, Ema(network, 0.0)), pictures=8) as log,
    ):
        count(log, 1, 2, 6, 9)
    assert scalars(recipe.folder, "train/loss") == [(3, 3), (4, 9)]


def test_a_scalar_of_some_steps_is_the_mean_of_those(
    recipe: Recipe, accelerator: Accelerator, state: RunState
) -> None:
    with RunLog(recipe, accelerator, state, pictures=8) as log:
        count(log, 1)
        state.step += 1
        log.step({"loss": torch.tensor(3.0), "adversarial": torch.tensor(4.0)})
    assert scalars(recipe.folder, "train/adversarial") == [(2, 4)]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_with_the_step_and_the_last_good_checkpoint(
    recipe: Recipe, accelerator: Accelerator, state: RunState, wrong: float
) -> None:
    with RunLog(recipe, accelerator, state, pictures=8) as log:
        count(log, 1)
        with pytest.raises(TrainingError, match=f"before step 2 loss is {wrong}; there is no checkpoint yet"):
            count(log, wrong)
        save_checkpoint(recipe, state, accelerator)
        with pytest.raises(TrainingError, match=r"the last good checkpoint is .*checkpoint-00000002\.pt"):
            log.check_finite()


def test_a_check_before_a_save_leaves_the_means_as_they_are(
    recipe: Recipe, accelerator: Accelerator, state: RunState
) -> None:
    with RunLog(recipe, accelerator, state, pictures=8) as log:
        count(log, 1)
        assert log.check_finite() == {"loss": 1}
        count(log, 2)
        assert log.check_finite() == {}
    assert scalars(recipe.folder, "train/loss") == [(2, 1.5)]


def test_results_are_written_and_printed(
    recipe: Recipe, accelerator: Accelerator, state: RunState, capsys: pytest.CaptureFixture[str]
) -> None:
    state.step = 7
    with RunLog(recipe, accelerator, state, pictures=8) as log:
        log.report({"psnr_db": 21.25, "usage": 0.5})
    assert "step 7: psnr_db 21.25, usage 0.5" in capsys.readouterr().out
    assert scalars(recipe.folder, "eval/psnr_db") == [(7, 21.25)]


def test_pictures_are_a_file_of_the_step(recipe: Recipe, accelerator: Accelerator, state: RunState) -> None:
    state.step = 7
    with RunLog(recipe, accelerator, state, pictures=8) as log:
        log.pictures("samples", torch.ones(3, 3, 4, 4), columns=2)
    with Image.open(recipe.folder / "samples-00000007.png") as image:
        assert np.array_equal(np.array(image), np.full((8, 8, 3), 255))


def test_gradients_are_told_by_the_name_of_their_weight(
    recipe: Recipe, accelerator: Accelerator, state: RunState
) -> None:
    network = state.networks["network"]
    network(torch.tensor([[3.0, 4.0]])).sum().backward()
    network.bias.requires_grad_(False).grad = None
    with RunLog(recipe, accelerator, state, pictures=8) as log:
        log.gradient_norms(network)
    assert scalars(recipe.folder, "gradient/weight") == [(0, 5)]


def test_pictures_on_a_full_disk_are_one_clear_message(
    recipe: Recipe, accelerator: Accelerator, state: RunState
) -> None:
    (recipe.folder / "samples-00000000.png").symlink_to("/dev/full")
    with (
        RunLog(recipe, accelerator, state, pictures=8) as log,
        pytest.raises(TrainingError, match=r"the run's log cannot be written \(No space left"),
    ):
        log.pictures("samples", torch.ones(1, 3, 4, 4), columns=1)


# Logs until no file may grow further, as on a full disk, which the thread of TensorBoard's writer notices.
FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from torch import nn
from models.errors import TrainingError
from tests.training_runs import recipe_of
from training.checkpoints import RunState
from training.ema import Ema
from training.processes import processes
from training.run_log import RunLog

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
recipe = recipe_of("classifier", folder, folder)
try:
    with (
        processes(recipe.training) as accelerator,
        RunLog(recipe, accelerator, RunState({}, {}, Ema(nn.Linear(1, 1), 0.0)), pictures=1) as log,
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        for step in range(1000):
            log.scalars("train", {f"scalar {number}": 1.0 for number in range(1000)})
except TrainingError as exc:
    print(exc)
"""


def test_a_log_that_cannot_grow_is_one_clear_message_without_a_trace(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert "the run's log cannot be written (File too large); there is no checkpoint" in process.stdout


def test_other_threads_still_tell_of_their_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    with quiet_writers():
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
    assert [each.exc_type for each in told] == [ZeroDivisionError]
    assert threading.excepthook == told.append
