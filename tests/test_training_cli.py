"""`maskbit train …` and `maskbit data …`, as their user calls them."""

from __future__ import annotations

import ast
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

import maskbit_cli
from models.bundle import open_bundle
from models.runtime.torch_runtime import TorchRuntime
from tests.training_fixtures import recipe_values
from tests.training_runs import assert_same, numbers_of
from training.checkpoints import checkpoint_files, load_checkpoint
from training.cli import train_app
from training.data.cli import data_app
from training.data.synthetic import synthetic_shards

ROOT = Path(__file__).resolve().parents[1]
STORED = ("--licence", "CC0-1.0", "--precision", "fp16")
COMMANDS = {"tokenizer": "tokenizer", "generator": "generator", "classifier": "perceptual"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def run(app: Any, *arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(app: Any, *arguments: object) -> str:
    result = run(app, *arguments)
    assert result.exception is None, result.output
    return result.output


class Refused:
    """What `maskbit` with wrong arguments or values says: one line, and exit code 2."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch = monkeypatch
        self.capsys = capsys

    def __call__(self, *arguments: object) -> str:
        self.monkeypatch.setattr(sys, "argv", ["maskbit", *map(str, arguments)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            maskbit_cli.main()
        assert caught.value.code == 2
        (line,) = self.capsys.readouterr().err.splitlines()
        assert line.startswith("maskbit: ")
        return line


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(monkeypatch, capsys)


def write_recipe(kind: str, folder: Path, **changes: Any) -> Path:
    if kind == "generator":
        changes = {"model__vq_model": None, **changes}  # its bundle describes the tokenizer
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(recipe_values(kind, folder / "data", folder / "runs", **changes)))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands drew data, trained all networks for 5 steps and wrote bundles."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["--classes", 3, "--per-class", 8, "--val-per-class", 2, "--image-size", 16]
    succeed(data_app, "synthetic", folder / "data", *options)
    for kind, command in COMMANDS.items():
        recipe = write_recipe(kind, folder, experiment__name=kind)
        arguments: list[object] = ["training.max_train_steps=5"]
        if kind == "generator":
            arguments.append(f"experiment.vqgan_checkpoint={folder / 'tokenizer-bundle'}")
        if kind != "classifier":
            arguments += ["--bundle", folder / f"{kind}-bundle", *STORED]
        output = succeed(train_app, command, recipe, *arguments)
        written = folder / "runs" / kind if kind == "classifier" else folder / f"{kind}-bundle"
        assert output.splitlines()[-1] == str(written)
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


def test_a_folder_of_pictures_becomes_shards_and_a_tokenizer(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (20, 20), (k, 0, 0)).save(tmp_path / "in" / name / f"{k}.png")
    (tmp_path / "in" / "ant" / "note.txt").write_text("hello")
    output = succeed(
        data_app, "folder", tmp_path / "in", tmp_path / "data", "--image-size", 16, "--val-share", 0.25
    )
    assert "2 classes, 6 training and 2 validation pictures, 1 files skipped" in output
    recipe = write_recipe("tokenizer", tmp_path, training__max_train_steps=1)
    succeed(train_app, "tokenizer", recipe, "--bundle", tmp_path / "out")
    assert open_bundle(str(tmp_path / "out")).manifest.class_names == ("ant", "bee")


def test_a_run_killed_from_outside_is_resumed_and_ends_as_an_undisturbed_one(
    trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").symlink_to(trained / "data")
    changes = {"experiment__save_every": 5, "experiment__eval_every": 60, "experiment__generate_every": 60}
    recipe = write_recipe("tokenizer", tmp_path, training__max_train_steps=60, **changes)
    folder = tmp_path / "runs" / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "maskbit_cli", "train", "tokenizer", str(recipe)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 100
    while not checkpoint_files(folder):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert load_checkpoint(checkpoint_files(folder)[-1])["step"] < 60

    succeed(train_app, "tokenizer", recipe, "experiment.resume=true")
    succeed(train_app, "tokenizer", recipe, "experiment.name=undisturbed")
    assert_same(numbers_of(folder), numbers_of(tmp_path / "runs" / "undisturbed"))


def test_a_run_goes_on_where_the_recipe_or_the_option_says_so(
    trained: Path, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "data").symlink_to(trained / "data")
    recipe = write_recipe("classifier", tmp_path)
    succeed(train_app, "perceptual", recipe, "experiment.resume=true")  # nothing to resume yet
    message = refused("train", "perceptual", recipe)
    assert "holds a run already; continue it with --resume or change experiment.name" in message
    succeed(train_app, "perceptual", recipe, "training.max_train_steps=5", "--resume")
    succeed(train_app, "perceptual", recipe, "training.max_train_steps=6", "experiment.resume=true")
    assert numbers_of(tmp_path / "runs" / "run")["step"] == 6
    for resume in ("--resume", "experiment.resume=true"):
        message = refused("train", "perceptual", recipe, "optimizer.learning_rate=1", resume)
        assert "belongs to a run with another optimizer.learning_rate; use another experiment.name" in message


def test_help_answers_without_heavy_libraries() -> None:
    code = (
        "import sys, training.cli, training.data.cli;"
        "print([m for m in ('torch', 'accelerate', 'numpy') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "[]"
    for app, commands in (
        (train_app, ("tokenizer", "generator", "perceptual")),
        (data_app, ("folder", "synthetic", "cache")),
    ):
        overview = succeed(app, "--help")
        for command in commands:
            assert command in overview
            assert "--" in succeed(app, command, "--help")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "tokenizer"], "missing argument 'recipe'"),
        (["train", "tokeniser", "x"], "no such command 'tokeniser'"),
        (["train", "classifier", "x"], "no such command 'classifier'"),
        (["train", "tokenizer", "x", "--precision", "fp8"], "invalid value for '--precision'"),
        (["train", "tokenizer", "x", "--steps", "3"], "no such option: --steps"),
        (["train", "perceptual", "x", "--bundle", "y"], "no such option: --bundle"),
        (["train", "generator", "x", "--bundle"], "'--bundle' requires an argument"),
        (["data", "folder", "only-source"], "missing argument 'out'"),
        (["data", "synthetic", "out", "--classes", "many"], "invalid value for '--classes'"),
    ],
)
def test_wrong_arguments_are_one_line_and_code_2(
    refused: Refused, arguments: list[str], message: str
) -> None:
    assert message in refused(*arguments).lower()


def test_what_is_wrong_with_a_recipe_is_one_line_and_code_2(
    refused: Refused, trained: Path, tmp_path: Path
) -> None:
    recipe = write_recipe("tokenizer", tmp_path)
    (tmp_path / "broken.yaml").write_text("a: [1,\n  {b: c\n")
    for arguments, message in (
        (["nonsense"], "no recipe file 'nonsense'"),
        ([tmp_path / "broken.yaml"], "broken.yaml: not a recipe"),
        ([recipe, "optimizer.params.lr=1"], "unknown lr; allowed are"),
        ([recipe, "training.seed"], "override 'training.seed'; the form is section.key=value"),
        ([recipe, "training.per_gpu_batch_size=0"], "per_gpu_batch_size is 0"),
        ([recipe, "experiment.init_checkpoint=none", "experiment.name=other"], "none"),
        ([recipe], "nothing found at"),
        ([recipe, "--bundle", trained / "data"], "exists and is no bundle; give an empty or a new folder"),
    ):
        assert message in refused("train", "tokenizer", *arguments), message
    assert "no mlm_model, which training a generator needs" in refused("train", "generator", recipe)
    assert "no folder" in refused("data", "folder", tmp_path / "none", tmp_path / "out")
    assert "is not empty" in refused("data", "synthetic", trained / "data")


def test_what_ends_a_run_is_one_line_with_the_last_good_checkpoint(
    refused: Refused, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").symlink_to(trained / "data")
    changes = {"experiment__save_every": 1, "training__max_train_steps": 20}
    recipe = write_recipe("tokenizer", tmp_path, **changes)
    line = refused("train", "tokenizer", recipe, "optimizer.params.learning_rate=1e30")
    last = checkpoint_files(tmp_path / "runs" / "run")[-1]
    assert " is nan; " in line
    assert f"the last good checkpoint is {last}. A lower learning rate" in line

    full = tmp_path / "runs" / "full"
    full.mkdir()
    (full / ".checkpoint-00000002.pt.partial").symlink_to("/dev/full")
    line = refused("train", "tokenizer", recipe, "experiment.name=full")
    assert "checkpoint-00000002.pt cannot be written (No space left on device); the last good" in line
    assert line.endswith("checkpoint-00000001.pt")


def test_a_bundle_that_cannot_be_written_is_known_before_the_training(
    refused: Refused, trained: Path, tmp_path: Path
) -> None:
    synthetic_shards(tmp_path / "data", classes=3, per_class=2, val_per_class=1, image_size=16)
    (tmp_path / "data" / "classes.json").write_text('{"0": "a", "1": "b"}')
    tokenizer = f"experiment.vqgan_checkpoint={trained / 'tokenizer-bundle'}"
    recipe = write_recipe("generator", tmp_path)
    message = refused("train", "generator", recipe, tokenizer, "--bundle", tmp_path / "out")
    assert "2 class names for 3 classes" in message
    assert not (tmp_path / "runs").exists()


def test_training_stands_on_models_alone() -> None:
    for path in (ROOT / "training").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {"service", "export"}, path
