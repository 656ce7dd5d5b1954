"""Small recipes and shards for the tests of training."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SHARED: dict[str, Any] = {
    "experiment": {"name": "run", "log_every": 2, "save_every": 2, "generate_every": 2, "eval_every": 4},
    "dataset": {
        "params": {"shuffle_buffer_size": 8, "num_workers_per_gpu": 0},
        "preprocessing": {"resolution": 16},
    },
    "optimizer": {"params": {"learning_rate": 2e-3}},
    "lr_scheduler": {"params": {"warmup_steps": 2}},
    "training": {"max_train_steps": 4, "per_gpu_batch_size": 4, "device": "cpu", "seed": 7},
}
MODELS: dict[str, dict[str, Any]] = {
    "tokenizer": {
        "vq_model": {
            "hidden_channels": 8,
            "channel_mult": [1, 2],
            "num_resolutions": 2,
            "num_res_blocks": 1,
            "norm_groups": 2,
            "token_size": 4,
            "commitment_cost": 0.025,
            "entropy_loss_weight": 0.002,
        }
    },
    "generator": {
        "mlm_model": {
            "hidden_dim": 16,
            "depth": 1,
            "heads": 2,
            "mlp_dim": 32,
            "codebook_splits": 2,
            "nclass": 3,
            "num_steps": 3,
        },
    },
    "classifier": {"classifier": {"widths": [8, 16], "num_classes": 3}},
}
MODELS["generator"]["vq_model"] = MODELS["tokenizer"]["vq_model"]


def recipe_values(kind: str, shards: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """The sections of a small `kind` recipe; `changes` are values by section__key or section__part__key."""
    values = {**deepcopy(SHARED), "model": deepcopy(MODELS[kind])}
    values["dataset"]["params"] |= {
        "train_shards_path_or_url": f"{shards}/train-*.tar",
        "eval_shards_path_or_url": f"{shards}/val-*.tar",
    }
    values["experiment"]["output_dir"] = str(output)
    if kind == "generator":
        values["experiment"]["vqgan_checkpoint"] = "tokenizer.safetensors"
    for path, value in changes.items():
        *sections, name = path.split("__")
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return values


def picture_bytes(seed: int, size: tuple[int, int] = (16, 16)) -> bytes:
    """A PNG of random pixels."""
    buffer = io.BytesIO()
    Image.fromarray(random_pixels(seed, size)).save(buffer, "PNG")
    return buffer.getvalue()


def random_pixels(seed: int, size: tuple[int, int] = (16, 16)) -> NDArray[np.uint8]:
    """The pixels (height, width, 3) of picture_bytes."""
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """A tar file of (name, bytes)."""
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def read_tar(path: Path) -> dict[str, bytes]:
    """The files of a tar by name."""
    with tarfile.open(path) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]


def sample_files(key: int, classes: int = 3) -> list[tuple[str, bytes]]:
    """The two files of sample `key` in a shard: a PNG of its own and the class number key % classes."""
    return [(f"{key:04d}.png", picture_bytes(key)), (f"{key:04d}.cls", str(key % classes).encode())]


def write_shard(path: Path, keys: Iterable[int]) -> None:
    """A tar shard of the samples `keys`."""
    write_tar(path, [file for key in keys for file in sample_files(key)])


def key_of(image: NDArray[np.uint8], keys: int) -> int:
    """Which of the samples 0 to `keys` - 1 the RGB pixels (16, 16, 3) are those of."""
    return [np.array_equal(image, random_pixels(key)) for key in range(keys)].index(True)
