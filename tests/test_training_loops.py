from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)
from torch import nn

from models.bundle import Bundle, open_bundle
from models.drawing import draw
from models.errors import BundleError, CheckpointError, ConfigError, RuntimeUnavailable
from models.runtime.torch_runtime import TorchRuntime
from tests.training_fixtures import recipe_values
from training.checkpoints import checkpoint_files, load_checkpoint
from training.classifier_loop import train_classifier
from training.config import GeneratorRecipe, TokenizerRecipe
from training.data import evaluation_batches
from training.evaluation import evaluate_bundle, load_judge
from training.generator_loop import train_generator
from training.publish import publish_generator, publish_tokenizer
from training.recipes import build_recipe
from training.synthetic import synthetic_shards
from training.tokenizer_loop import train_tokenizer

LOOPS: dict[str, Callable[..., nn.Module]] = {
    "tokenizer": train_tokenizer,
    "generator": train_generator,
    "classifier": train_classifier,
}
KINDS = list(LOOPS)
HALF = 3  # steps before and after the interruption


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    synthetic_shards(folder, classes=3, per_class=12, val_per_class=4, image_size=16)
    return folder


@pytest.fixture(scope="module")
def tokenizer_run(
    shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TokenizerRecipe, nn.Module, Bundle]:
    """A tokenizer trained for 60 steps, and its bundle."""
    output = tmp_path_factory.mktemp("tokenizer")
    changes = {
        "training__max_train_steps": 60,
        "training__per_gpu_batch_size": 8,
        "experiment__log_every": 10,
    }
    reports = {"experiment__save_every": 60, "experiment__sample_every": 30, "experiment__eval_every": 30}
    recipe = build_recipe("tokenizer", recipe_values("tokenizer", shards, output, **changes, **reports))
    assert isinstance(recipe, TokenizerRecipe)
    network = train_tokenizer(recipe)
    return recipe, network, publish_tokenizer(network, recipe, output / "bundle", licence="CC0-1.0")


def small_recipe(kind: str, shards: Path, output: Path, bundle: Bundle, **changes: Any) -> Any:
    """A recipe of 2 x HALF steps that saves at every HALF, and augments, drops and warms up on the way."""
    settings = {"training__max_train_steps": 2 * HALF, "experiment__save_every": HALF, **changes}
    if kind == "generator":
        settings["model__tokenizer"] = str(bundle.path)
    return build_recipe(kind, recipe_values(kind, shards, output, **settings))


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def assert_same(left: Any, right: Any, where: str = "state") -> None:
    """Bit equality of nested containers of tensors and plain values."""
    assert type(left) is type(right), where
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key, value in left.items():
            assert_same(value, right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for number, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{where}[{number}]")
    else:
        assert left == right, where


def numbers_of(path: Path) -> dict[str, Any]:
    """A checkpoint without its recipe, whose output folder may differ."""
    return {key: value for key, value in load_checkpoint(path).items() if key != "recipe"}


def test_a_tokenizer_learns_and_reports(
    tokenizer_run: tuple[TokenizerRecipe, nn.Module, Bundle],
) -> None:
    folder = tokenizer_run[0].folder
    losses = scalars(folder, "train/mse")
    assert [step for step, _ in losses] == [10, 20, 30, 40, 50, 60]
    assert losses[-1][1] < 0.5 * losses[0][1]
    assert [step for step, _ in scalars(folder, "eval/psnr_db")] == [30, 60]
    assert sorted(path.name for path in folder.glob("*.png")) == [
        "reconstructions-00000030.png",
        "reconstructions-00000060.png",
    ]
    assert [path.name for path in checkpoint_files(folder)] == ["checkpoint-00000060.pt"]


def test_a_tokenizer_bundle_gives_the_averaged_networks_tokens_and_pictures(
    tokenizer_run: tuple[TokenizerRecipe, nn.Module, Bundle], shards: Path
) -> None:
    _, network, bundle = tokenizer_run
    manifest = open_bundle(str(bundle.path)).manifest
    assert manifest.class_names == ("balloon", "boat", "fish")
    assert (manifest.licence, manifest.name, manifest.generator) == ("CC0-1.0", "bundle", None)
    batch = next(evaluation_batches(str(shards / "val-*.tar"), 16, 4))
    pixels = (batch.images * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    with torch.inference_mode():
        rebuilt, quantized = network(batch.images)
    runtime = TorchRuntime(bundle, device="cpu")
    indices = runtime.encode(pixels)
    assert np.array_equal(indices, quantized.indices.numpy())
    decoded = runtime.decode(indices).astype(int)
    expected = (rebuilt.clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(decoded - expected).max() <= 0.51


def test_a_generator_bundle_draws_and_can_be_judged(
    tokenizer_run: tuple[TokenizerRecipe, nn.Module, Bundle], shards: Path, tmp_path: Path
) -> None:
    tokenizer_bundle = tokenizer_run[2]
    recipe = small_recipe("generator", shards, tmp_path, tokenizer_bundle)
    assert isinstance(recipe, GeneratorRecipe)
    bundle = publish_generator(train_generator(recipe), recipe, tmp_path / "whole", precision="fp16")
    assert (recipe.folder / f"samples-{2 * HALF:08d}.png").is_file()
    manifest = bundle.manifest
    grids = draw(TorchRuntime(bundle, device="cpu"), manifest, manifest.sampling, [0, 2], [5, 6])
    assert grids.shape == (2, 8, 8)
    assert 0 <= grids.min() <= grids.max() < 16

    judge = small_recipe("classifier", shards, tmp_path / "judge", tokenizer_bundle)
    train_classifier(judge)
    report = evaluate_bundle(
        bundle,
        str(shards / "val-*.tar"),
        judge=judge.folder,
        per_class=2,
        device="cpu",
        grid=tmp_path / "grid.png",
    )
    assert (report.bundle, report.reconstructed, report.generated) == (bundle.ref, 12, 6)
    for share in (report.accuracy_real, report.accuracy_reconstructed, report.accuracy_generated):
        assert share is not None
        assert 0 <= share <= 1
    assert 0 < report.codebook_usage <= 1
    assert (tmp_path / "grid.png").is_file()
    # The bundle's tokenizer is the trained one but for fp16, so PSNR is what training reported last.
    last = scalars(tokenizer_run[0].folder, "eval/psnr_db")[-1][1]
    assert report.psnr_db == pytest.approx(last, abs=0.1)


def test_a_bundle_without_generator_or_judge_is_measured_as_far_as_it_goes(
    tokenizer_run: tuple[TokenizerRecipe, nn.Module, Bundle], shards: Path, tmp_path: Path
) -> None:
    grid = tmp_path / "grid.png"
    report = evaluate_bundle(tokenizer_run[2], str(shards / "val-*.tar"), device="cpu", grid=grid)
    assert (report.generated, report.generation_s, report.accuracy_real, report.accuracy_generated) == (
        0,
        None,
        None,
        None,
    )
    assert grid.is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_bit_equal_to_one_that_was_never_stopped(
    kind: str,
    tokenizer_run: tuple[TokenizerRecipe, nn.Module, Bundle],
    shards: Path,
    tmp_path: Path,
) -> None:
    bundle = tokenizer_run[2]
    whole = small_recipe(kind, shards, tmp_path / "whole", bundle)
    uninterrupted = LOOPS[kind](whole)
    half, full = checkpoint_files(whole.folder)
    assert half.name == f"checkpoint-{HALF:08d}.pt"

    # What a kill in the middle of the second save leaves behind; reports may be paced otherwise.
    stopped = small_recipe(
        kind, shards, tmp_path / "stopped", bundle, experiment__log_every=1, experiment__sample_every=5
    )
    stopped.folder.mkdir(parents=True)
    shutil.copy(half, stopped.folder)
    (stopped.folder / full.name).with_suffix(".partial").write_bytes(full.read_bytes()[:5000])
    resumed = LOOPS[kind](stopped, resume=True)

    assert_same(numbers_of(checkpoint_files(stopped.folder)[-1]), numbers_of(full))
    assert_same(resumed.state_dict(), uninterrupted.state_dict())
    moved = load_checkpoint(half)["network"]
    assert any(not torch.equal(moved[key], value) for key, value in load_checkpoint(full)["network"].items())


def test_a_finished_run_is_resumed_without_another_step(
    tokenizer_run: tuple[TokenizerRecipe, nn.Module, Bundle],
) -> None:
    recipe, network, _ = tokenizer_run
    before = [path.read_bytes() for path in checkpoint_files(recipe.folder)]
    assert_same(train_tokenizer(recipe, resume=True).state_dict(), network.state_dict())
    assert [path.read_bytes() for path in checkpoint_files(recipe.folder)] == before


def test_a_run_is_not_overwritten_without_resume(
    tokenizer_run: tuple[TokenizerRecipe, nn.Module, Bundle],
) -> None:
    with pytest.raises(CheckpointError, match="holds a run already; continue it with --resume"):
        train_tokenizer(tokenizer_run[0])


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"optimizer__learning_rate": 0.5}, "optimizer.learning_rate"),
        ({"training__ema_decay": 0.5}, "training.ema_decay"),
        ({"training__mixed_precision": "bf16"}, "training.mixed_precision"),
        ({"dataset__flip": False}, "dataset.flip"),
        ({"losses__reconstruction_weight": 1.0}, "losses.reconstruction_weight"),
    ],
)
def test_a_run_name_with_another_recipe_is_refused_by_the_key_that_differs(
    tokenizer_run: tuple[TokenizerRecipe, nn.Module, Bundle],
    shards: Path,
    change: dict[str, Any],
    key: str,
) -> None:
    run = tokenizer_run[0]
    settings = {"training__max_train_steps": 60, "training__per_gpu_batch_size": 8, **change}
    values = recipe_values("tokenizer", shards, Path(run.experiment.output_dir), **settings)
    other = build_recipe("tokenizer", values)
    assert isinstance(other, TokenizerRecipe)
    with pytest.raises(CheckpointError, match=f"written with another {key}; use another experiment.name"):
        train_tokenizer(other, resume=True)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_damaged_checkpoint_is_named(
    tokenizer_run: tuple[TokenizerRecipe, nn.Module, Bundle], tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "checkpoint-00000001.pt"
    good = checkpoint_files(tokenizer_run[0].folder)[-1].read_bytes()
    path.write_bytes(good[: len(good) // 2] if content is None else content)
    with pytest.raises(CheckpointError, match=r"checkpoint-00000001\.pt: not a readable checkpoint"):
        load_checkpoint(path)


def test_a_file_of_other_tensors_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of a training run"):
        load_checkpoint(tmp_path / "x.pt")


def test_only_a_classifier_of_the_same_classes_can_be_the_judge(
    tokenizer_run: tuple[TokenizerRecipe, nn.Module, Bundle], shards: Path, tmp_path: Path
) -> None:
    recipe, _, bundle = tokenizer_run
    with pytest.raises(CheckpointError, match="no checkpoint of a classifier"):
        load_judge(recipe.folder, bundle.manifest)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_judge(tmp_path, bundle.manifest)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_judge(tmp_path / "none.pt", bundle.manifest)
    judge = small_recipe(
        "classifier", shards, tmp_path, bundle, model__classifier={"widths": [8], "num_classes": 4}
    )
    train_classifier(judge)
    with pytest.raises(ConfigError, match="the judge knows 4 classes, the bundle has 3"):
        load_judge(judge.folder, bundle.manifest)


def test_a_generator_that_does_not_fit_its_tokenizer_is_refused(
    tokenizer_run: tuple[TokenizerRecipe, nn.Module, Bundle], shards: Path, tmp_path: Path
) -> None:
    values = recipe_values(
        "generator", shards, tmp_path, model__tokenizer=str(tokenizer_run[2].path), experiment__name="g"
    )
    values["model"]["mlm_model"]["bits"] = 6
    recipe = build_recipe("generator", values)
    assert isinstance(recipe, GeneratorRecipe)
    with pytest.raises(ConfigError, match=r"needs 6 bits, stride 2 and 16 pixels; the tokenizer has 4 bits"):
        train_generator(recipe)


def test_a_missing_tokenizer_bundle_is_named(shards: Path, tmp_path: Path) -> None:
    recipe = build_recipe("generator", recipe_values("generator", shards, tmp_path))
    assert isinstance(recipe, GeneratorRecipe)
    with pytest.raises(BundleError, match="tokenizer-bundle"):
        train_generator(recipe)


def test_labels_beyond_the_recipes_classes_end_the_run_with_a_clear_error(
    tokenizer_run: tuple[TokenizerRecipe, nn.Module, Bundle], shards: Path, tmp_path: Path
) -> None:
    model = {"widths": [8], "num_classes": 2}
    recipe = small_recipe("classifier", shards, tmp_path, tokenizer_run[2], model__classifier=model)
    with pytest.raises(ConfigError, match="a shard holds class 2; the recipe has 2 classes"):
        train_classifier(recipe)


def test_an_absent_device_is_refused_before_anything_is_written(
    tokenizer_run: tuple[TokenizerRecipe, nn.Module, Bundle], shards: Path, tmp_path: Path
) -> None:
    recipe = small_recipe("tokenizer", shards, tmp_path / "runs", tokenizer_run[2], training__device="tpu")
    with pytest.raises(RuntimeUnavailable, match="device is 'tpu'"):
        train_tokenizer(recipe)
    assert not (tmp_path / "runs").exists()
