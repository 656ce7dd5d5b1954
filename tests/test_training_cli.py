from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from models.bundle import open_bundle
from models.errors import ConfigError, MaskBitError
from models.runtime.torch_runtime import TorchRuntime
from tests.training_fixtures import recipe_values
from training.checkpoints import checkpoint_files, load_checkpoint
from training.cli import train_app
from training.data_cli import data_app
from training.evaluation.cli import evaluate_app
from training.synthetic import synthetic_shards

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def run(app: Any, *arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(app: Any, *arguments: object) -> str:
    result = run(app, *arguments)
    assert result.exception is None, result.output
    return result.output


def error(app: Any, *arguments: object) -> MaskBitError:
    """The foreseen error of a call, which maskbit_cli.main turns into one line."""
    result = run(app, *arguments)
    assert isinstance(result.exception, MaskBitError), result.output
    assert "\n" not in str(result.exception)
    return result.exception


def write_recipe(kind: str, folder: Path, **changes: Any) -> Path:
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(recipe_values(kind, folder / "data", folder / "runs", **changes)))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands drew data, trained all networks for 5 steps and wrote bundles."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["--classes", 3, "--per-class", 8, "--val-per-class", 2, "--image-size", 16]
    succeed(data_app, "synthetic", folder / "data", *options)
    for kind in ("tokenizer", "generator", "classifier"):
        recipe = write_recipe(kind, folder, experiment__name=kind)
        overrides = ["training.max_train_steps=5"]
        if kind == "generator":
            overrides.append(f"model.tokenizer={folder / 'tokenizer-bundle'}")
        bundle = ["--bundle", folder / f"{kind}-bundle", "--licence", "CC0-1.0", "--precision", "fp16"]
        succeed(train_app, kind, recipe, *overrides, *(bundle if kind != "classifier" else []))
    return folder


def test_training_ends_in_bundles_that_the_runtime_opens(trained: Path) -> None:
    bundle = open_bundle(str(trained / "generator-bundle"))
    manifest = bundle.manifest
    assert (manifest.licence, manifest.class_names) == ("CC0-1.0", ("balloon", "boat", "fish"))
    assert manifest.provenance["generator"]["steps"] == manifest.provenance["tokenizer"]["steps"] == 5
    TorchRuntime(bundle, device="cpu").warm_up()
    whole, half = (
        trained / name / "tokenizer.safetensors" for name in ("generator-bundle", "tokenizer-bundle")
    )
    assert whole.read_bytes() == half.read_bytes()


def test_evaluation_prints_its_numbers_and_writes_them(trained: Path, tmp_path: Path) -> None:
    output = succeed(
        evaluate_app,
        *("bundle", trained / "generator-bundle", "--shards", trained / "data" / "val-000000.tar"),
        *("--judge", trained / "runs" / "classifier", "--per-class", 3, "--device", "cpu"),
        *("--grid", tmp_path / "grid.png", "--json", tmp_path / "out.json"),
    )
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert numbers["generated"] == 9
    assert numbers["reconstructed"] == 6
    assert all(key in output for key in numbers)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (3 * 16, 3 * 16)


def test_a_folder_of_pictures_becomes_shards(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (20, 20), (k, 0, 0)).save(tmp_path / "in" / name / f"{k}.png")
    (tmp_path / "in" / "ant" / "note.txt").write_text("hello")
    options = ["--image-size", 16, "--val-share", 0.25]
    output = succeed(data_app, "folder", tmp_path / "in", tmp_path / "out", *options)
    assert "2 classes, 6 training and 2 validation pictures, 1 files skipped" in output


def test_a_killed_run_is_resumed_and_ends_with_the_weights_of_an_undisturbed_one(
    trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").symlink_to(trained / "data")
    changes = {"experiment__save_every": 5, "experiment__eval_every": 60, "experiment__sample_every": 60}
    recipe = write_recipe("tokenizer", tmp_path, training__max_train_steps=60, **changes)
    folder = tmp_path / "runs" / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", "from training.cli import train_app; train_app()", "tokenizer", str(recipe)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while not checkpoint_files(folder):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert load_checkpoint(checkpoint_files(folder)[-1])["step"] < 60

    succeed(train_app, "tokenizer", recipe, "--resume")
    succeed(train_app, "tokenizer", recipe, "experiment.name=undisturbed")
    first, second = (
        load_checkpoint(tmp_path / "runs" / name / "checkpoint-00000060.pt")["network"]
        for name in ("run", "undisturbed")
    )
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_help_answers_without_heavy_libraries() -> None:
    code = (
        "import sys, training.cli; print([m for m in ('torch', 'webdataset', 'numpy') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "[]"
    for app, commands in (
        (train_app, ("tokenizer", "generator", "classifier")),
        (data_app, ("folder", "synthetic")),
        (evaluate_app, ("bundle",)),
    ):
        overview = succeed(app, "--help")
        for command in commands:
            assert command in overview
            assert "--" in succeed(app, command, "--help")


@pytest.mark.parametrize(
    ("app", "arguments"),
    [
        (train_app, ["tokenizer"]),
        (train_app, ["tokeniser", "x"]),
        (train_app, ["tokenizer", "x", "--precision", "fp8"]),
        (train_app, ["classifier", "x", "--bundle", "y"]),
        (data_app, ["folder", "only-source"]),
        (data_app, ["synthetic", "out", "--classes", "many"]),
        (evaluate_app, ["bundle", "fruit"]),
    ],
)
def test_wrong_arguments_are_a_usage_error(app: Any, arguments: list[str]) -> None:
    assert run(app, *arguments).exit_code == 2


def test_what_is_wrong_with_a_call_is_said_in_one_line(trained: Path, tmp_path: Path) -> None:
    recipe = write_recipe("tokenizer", tmp_path)
    assert "no recipe file 'nonsense'" in str(error(train_app, "tokenizer", "nonsense"))
    assert "unknown lr" in str(error(train_app, "tokenizer", recipe, "optimizer.lr=1"))
    assert "no shard file at" in str(error(train_app, "tokenizer", recipe))
    assert "no folder" in str(error(data_app, "folder", tmp_path / "none", tmp_path / "out"))
    assert "is not empty" in str(error(data_app, "synthetic", trained / "data"))
    shards = ["--shards", trained / "data" / "none.tar"]
    assert "no shard file" in str(error(evaluate_app, "bundle", trained / "tokenizer-bundle", *shards))
    assert "no bundle 'nonsense'" in str(error(evaluate_app, "bundle", "nonsense", *shards))


def test_a_bundle_that_cannot_be_written_is_known_before_the_training(trained: Path, tmp_path: Path) -> None:
    synthetic_shards(tmp_path / "data", classes=3, per_class=2, val_per_class=1, image_size=16)
    (tmp_path / "data" / "classes.json").write_text('{"0": "a", "1": "b"}')
    tokenizer = f"model.tokenizer={trained / 'tokenizer-bundle'}"
    recipe = write_recipe("generator", tmp_path)
    found = error(train_app, "generator", recipe, tokenizer, "--bundle", tmp_path / "out")
    assert isinstance(found, ConfigError)
    assert "2 class names for 3 classes" in str(found)
    assert not (tmp_path / "runs").exists()


def test_training_stands_on_models_alone() -> None:
    for path in (ROOT / "training").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {"service", "export"}, path


def test_numbers_do_not_depend_on_the_state_of_the_global_generator(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(trained / "data")
    recipe = write_recipe("tokenizer", tmp_path, experiment__name="again")
    torch.manual_seed(12345)
    succeed(train_app, "tokenizer", recipe, "training.max_train_steps=5")
    first, second = (
        load_checkpoint(checkpoint_files(path)[-1])["network"]
        for path in (trained / "runs" / "tokenizer", tmp_path / "runs" / "again")
    )
    assert all(torch.equal(value, second[key]) for key, value in first.items())
