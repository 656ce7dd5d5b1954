"""Small training runs for the tests of the loops: their data, their recipes, and how to compare them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)
from torch import nn

from models.networks import build_tokenizer
from models.published import tokenizer_config
from tests.training_fixtures import MODELS, recipe_values
from training.checkpoints import checkpoint_files, load_checkpoint
from training.classifier_loop import train_classifier
from training.data.synthetic import synthetic_shards
from training.generator_loop import train_generator
from training.recipe_file import build_recipe
from training.tokenizer_loop import train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
TRAIN: dict[str, Callable[..., nn.Module]] = {
    "tokenizer": train_tokenizer,
    "generator": train_generator,
    "classifier": train_classifier,
}
KINDS = tuple(TRAIN)
ADVERSARY: dict[str, Any] = {
    "model__discriminator": {"name": "Original", "num_stages": 2, "hidden_channels": 8},
    "losses__discriminator_start": 2,
    "losses__discriminator_gradient_penalty": "adopt_weight",
    "losses__lecam_regularization_weight": 0.1,
}


def write_data(folder: Path) -> Path:
    """Synthetic shards of 16 pixels and 3 classes, and `tokenizer.safetensors` of random weights."""
    synthetic_shards(folder, classes=3, per_class=12, val_per_class=4, image_size=16)
    torch.manual_seed(0)
    network = build_tokenizer(tokenizer_config(MODELS["tokenizer"]["vq_model"]))
    save_file(network.state_dict(), folder / "tokenizer.safetensors")
    return folder


def recipe_of(kind: str, data: Path, output: Path, **changes: Any) -> Any:
    """The small `kind` recipe on what `write_data` wrote."""
    if kind == "generator":
        changes = {"experiment__vqgan_checkpoint": str(data / "tokenizer.safetensors"), **changes}
    return build_recipe(kind, recipe_values(kind, data, output, **changes))


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
    """A checkpoint, or the newest one of a run folder, without its recipe, which names its own folder."""
    file = path if path.is_file() else checkpoint_files(path)[-1]
    return {key: value for key, value in load_checkpoint(file).items() if key != "recipe"}


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    """Steps and values of a scalar that the run in `folder` wrote for TensorBoard."""
    return [(event.step, event.value) for event in _events(folder).Scalars(name)]


def scalar_names(folder: Path) -> list[str]:
    """Names of all scalars that the run in `folder` wrote for TensorBoard."""
    return list(_events(folder).Tags()["scalars"])


def _events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def curve(folder: Path, name: str = "train/loss") -> list[float]:
    """Values of a scalar in the order of its steps."""
    return [value for _, value in scalars(folder, name)]


def run_processes(count: int, code: str, folder: Path, *arguments: str) -> None:
    """Run the Python `code` in `count` processes of one gloo group on the CPU, started by torchrun."""
    script = folder / "script.py"
    script.write_text(code)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", str(script)]
    process = subprocess.Popen(
        [sys.executable, *launcher, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        errors = process.communicate(timeout=110)[1]
    except BaseException:
        process.terminate()  # at which torchrun ends its processes; killed, it would leave them
        process.communicate()
        raise
    assert process.returncode == 0, errors[-5000:]


def free_ports(count: int) -> list[int]:
    """Ports on which nobody listens."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
