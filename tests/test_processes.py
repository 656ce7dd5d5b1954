"""Two processes train as one with the doubled batch does, and resume exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType

from models.errors import RuntimeUnavailable
from tests.training_fixtures import recipe_values
from tests.training_runs import (
    TRAIN,
    assert_same,
    curve,
    free_ports,
    numbers_of,
    recipe_of,
    run_processes,
    write_data,
)
from training.cache.building import build_cache
from training.checkpoints import checkpoint_files, load_checkpoint
from training.config import LoopConfig
from training.processes import merged, processes
from training.recipe_file import build_recipe

# Trains each recipe of a list to its end, each in a group of its own on one of the ports; with `resume`, from
# its newest checkpoint.
RUNS = """
import json, os, sys
from pathlib import Path
import torch
from tests.training_runs import TRAIN
from training.recipe_file import build_recipe

torch.set_num_threads(1)
os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
recipes, ports = json.loads(Path(sys.argv[1]).read_text())
for (kind, values, resume), port in zip(recipes, ports, strict=True):
    os.environ["MASTER_PORT"] = str(port)
    TRAIN[kind](build_recipe(kind, values), resume=resume)
"""
VQGAN_DISCRIMINATOR = {"name": "VQGAN+Discriminator", "num_stages": 1, "hidden_channels": 32}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "weighted": (
        "generator",
        {"losses__mlm__loss_on": "weighted", "training__gradient_accumulation_steps": 2},
    ),
    "cached": ("generator", {"losses__mlm__loss_on": "masked", "dataset__params__token_cache": "cache"}),
    "tokenizer": (
        "tokenizer",
        {
            "model__vq_model__entropy_loss_weight": 0.0,  # the mean over codes is that of each process
            "model__discriminator": VQGAN_DISCRIMINATOR,
            "losses__discriminator_start": 1,
            "losses__discriminator_gradient_penalty": "adopt_weight",
            "losses__lecam_regularization_weight": 0.1,
            "dataset__params__num_workers_per_gpu": 2,
        },
    ),
    "classifier": ("classifier", {}),
}
SHARED = {"experiment__log_every": 1, "dataset__params__parts": 2, "lr_scheduler__params__warmup_steps": 1}


def values_of(case: str, data: Path, output: Path, batch: int) -> tuple[str, dict[str, Any]]:
    kind, changes = CASES[case]
    if kind == "generator":
        changes = {**changes, "experiment__vqgan_checkpoint": str(data / "tokenizer.safetensors")}
        changes["model__mlm_model__dropout"] = 0.0  # of each process its own
    if "dataset__params__token_cache" in changes:
        changes = {**changes, "dataset__params__token_cache": str(data / "cache")}
    changes = {**SHARED, "experiment__name": case, "training__per_gpu_batch_size": batch, **changes}
    return kind, recipe_values(kind, data, output, **changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = write_data(tmp_path_factory.mktemp("data"))
    build_cache(recipe_of("generator", folder, folder), folder / "cache", crops=2, store_flips=False)
    return folder


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every case run by two processes, in `two`, and by one, in `one`."""
    folder = tmp_path_factory.mktemp("runs")
    recipes = [(*values_of(case, data, folder / "two", 2), False) for case in CASES]
    first = next(iter(CASES))
    for steps in (2, 4):
        kind, values = values_of(first, data, folder / "two", 2)
        values["experiment"]["name"] = "resumed"
        values["training"]["max_train_steps"] = steps
        recipes.append((kind, values, steps == 4))
    (folder / "recipes.json").write_text(json.dumps((recipes, free_ports(len(recipes)))))
    run_processes(2, RUNS, folder, str(folder / "recipes.json"))
    for case in CASES:
        kind, values = values_of(case, data, folder / "one", 4)
        TRAIN[kind](build_recipe(kind, values))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_losses_of_one_with_the_doubled_batch(runs: Path, case: str) -> None:
    two, one = (curve(runs / name / case) for name in ("two", "one"))
    assert len(one) == 4
    assert two == pytest.approx(one, rel=2e-5)
    if case == "tokenizer":
        for name in ("discriminator_loss", "adversarial_weight", "lecam"):
            expected = curve(runs / "one" / case, f"train/{name}")
            assert curve(runs / "two" / case, f"train/{name}") == pytest.approx(expected, rel=1e-3), name


@pytest.mark.parametrize("case", CASES)
def test_two_processes_end_with_the_weights_of_one(runs: Path, case: str) -> None:
    two, one = (load_checkpoint(checkpoint_files(runs / name / case)[-1]) for name in ("two", "one"))
    for kind, weights in one["networks"].items():
        for key, value in weights.items():
            # Adam's first steps have the size of the rate, 2e-3, whatever that of a gradient
            assert torch.allclose(two["networks"][kind][key], value, atol=3e-4), key
    assert two["position"] == one["position"]
    assert two["position"].keys() or case == "cached"


def test_a_resumed_run_of_two_processes_is_one_that_was_never_stopped(runs: Path) -> None:
    resumed, whole = (numbers_of(runs / "two" / name) for name in ("resumed", next(iter(CASES))))
    assert resumed["step"] == 4
    assert len(resumed["position"]) == 2  # one part of the data in each process
    assert_same(resumed, whole)


def test_a_checkpoint_counts_the_pictures_of_both_processes(runs: Path) -> None:
    for case in CASES:
        batch = 8 if case == "weighted" else 4
        for name in ("one", "two"):
            assert numbers_of(runs / name / case)["pictures_per_step"] == batch


def test_one_process_writes_the_log_and_speed_is_that_of_all(runs: Path) -> None:
    a_picture = []
    for name in ("one", "two"):
        folder = runs / name / "weighted"
        assert len(list((folder / "tensorboard").iterdir())) == 1
        assert not list(folder.glob("*.partial"))
        flops, images = (curve(folder, f"train/{key}")[0] for key in ("flops_per_s", "images_per_s"))
        a_picture.append(flops / images)
    assert a_picture[0] == pytest.approx(a_picture[1], rel=1e-4)


TOTALS = """
from training.config import LoopConfig
from training.processes import process_count, processes, total

with processes(LoopConfig(1, 1, device="cpu")) as accelerator:
    assert process_count() == 2
    assert total(accelerator, 10 + accelerator.process_index) == 21
"""


def test_numbers_are_summed_over_processes(tmp_path: Path) -> None:
    run_processes(2, TOTALS, tmp_path)


def test_a_single_process_needs_no_merging() -> None:
    with processes(LoopConfig(1, 1, device="cpu")) as accelerator:
        assert accelerator.distributed_type == DistributedType.NO
        assert merged(accelerator, {"a": 1}) == {"a": 1}


def test_runs_of_different_precision_follow_one_another() -> None:
    for precision in ("no", "bf16", "no"):
        with processes(LoopConfig(1, 1, device="cpu", mixed_precision=precision)) as accelerator:
            assert accelerator.mixed_precision == precision
            with accelerator.autocast():
                product = torch.ones(2, 2) @ torch.ones(2, 2)
            assert product.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


def test_state_is_left_clean_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), processes(LoopConfig(1, 1, device="cpu", mixed_precision="bf16")):
        raise ZeroDivisionError
    with processes(LoopConfig(1, 1, device="cpu")) as accelerator:
        assert accelerator.mixed_precision == "no"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_one_clear_message() -> None:
    with (
        pytest.raises(RuntimeUnavailable, match="PyTorch sees no CUDA GPU; use auto or cpu"),
        processes(LoopConfig(1, 1, device="cuda")),
    ):
        pass
