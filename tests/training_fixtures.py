"""Small recipes and shards for the tests of training."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SHARED: dict[str, Any] = {
    "experiment": {"name": "run", "log_every": 2, "save_every": 2, "sample_every": 2, "eval_every": 4},
    "dataset": {"image_size": 16, "shuffle_buffer": 8, "workers": 0},
    "optimizer": {"learning_rate": 2e-3},
    "lr_scheduler": {"warmup_steps": 2},
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
        "tokenizer": "tokenizer-bundle",
        "mlm_model": {
            "bits": 4,
            "hidden_dim": 16,
            "depth": 1,
            "heads": 2,
            "mlp_dim": 32,
            "codebook_splits": 2,
            "img_size": 16,
            "input_stride": 2,
            "nclass": 3,
        },
    },
    "classifier": {"classifier": {"widths": [8, 16], "num_classes": 3}},
}


def recipe_values(kind: str, shards: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """The sections of a small `kind` recipe; `changes` are values by section__key."""
    values = {**deepcopy(SHARED), "model": deepcopy(MODELS[kind])}
    values["dataset"] |= {"train_shards": f"{shards}/train-*.tar", "eval_shards": f"{shards}/val-*.tar"}
    values["experiment"]["output_dir"] = str(output)
    if kind == "generator":
        values["sampling"] = {"steps": 3}
    for key, value in changes.items():
        section, name = key.split("__")
        values.setdefault(section, {})[name] = value
    return values


def picture_bytes(seed: int, size: tuple[int, int] = (16, 16)) -> bytes:
    """A PNG of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


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
