"""The folder of a long drawing run: what it was started with, and the sums of the pictures drawn so far.

One file a block holds the numbers of its finished chunks and their sums; it is replaced as a whole, so that a
killed run loses no more than the chunk that it was at.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from models.errors import CheckpointError, ConfigError
from models.whole_file import write_whole
from training.evaluation.feature_sample import FeatureSample
from training.evaluation.tally import Tally

CONFIG_FILE = "config.json"
GRID_FILE = "grid.png"
SUMS = "sums/"  # prefix of the arrays that are sums


@dataclass
class BlockState:
    """`chunks` that are drawn, and what was taken from their pictures."""

    tally: Tally
    sample: FeatureSample
    chunks: list[int] = field(default_factory=list)


class DrawingFolder:
    """Sums on disk."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        """ConfigError when `path` belongs to a run with another `config`, or holds something else."""
        self.path = path
        self._config = json.loads(json.dumps(config))
        file = path / CONFIG_FILE
        if not file.exists():
            entries = [entry.name for entry in path.iterdir()] if path.is_dir() else []
            # Hidden files are what a run leaves that was killed while it wrote.
            found = sorted(name for name in entries if not name.startswith("."))
            if found or path.is_file():
                raise ConfigError(
                    f"{path} holds {', '.join(found[:3]) or 'a file'} and no {CONFIG_FILE}; "
                    "give a new or an empty folder"
                )
            return
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as exc:
            raise ConfigError(f"{file} cannot be read: {exc}") from exc
        for key in sorted(stored.keys() | self._config.keys()):
            old, new = stored.get(key), self._config.get(key)
            if old != new:
                raise ConfigError(
                    f"{path} belongs to a run with another {key} ({old!r}, now {new!r}); give another folder"
                )

    def claim(self) -> None:
        """Make the folder and write its configuration."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError(f"{self.path} cannot be written: {exc.strerror}") from exc
        text = json.dumps(self._config, indent=2, ensure_ascii=False) + "\n"
        write_whole(self.path / CONFIG_FILE, text.encode())

    def chunks(self, block: int) -> list[int]:
        """The chunks of `block` that are drawn."""
        file = self._file(block)
        if not file.exists():
            return []
        with _arrays(file) as arrays:
            return [int(number) for number in arrays["chunks"]]

    def load(self, block: int, limit: int) -> BlockState:
        """The state of `block`, empty at first; `limit` bounds its sample."""
        state = BlockState(Tally(1), FeatureSample(limit))
        file = self._file(block)
        if not file.exists():
            return state
        with _arrays(file) as arrays:
            state.chunks = arrays["chunks"].tolist()
            names = [name for name in arrays.files if name.startswith(SUMS)]
            state.tally.merge({name.removeprefix(SUMS): torch.from_numpy(arrays[name]) for name in names})
            if "indices" in arrays:
                state.sample.add(arrays["indices"], arrays["features"])
        return state

    def save(self, block: int, state: BlockState) -> None:
        """Write the state of `block`, completely or not at all; ConfigError when that is impossible."""
        arrays = {SUMS + name: values.numpy() for name, values in state.tally.sums().items()}
        if (content := state.sample.content()) is not None:
            arrays["indices"], arrays["features"] = content
        buffer = io.BytesIO()
        np.savez(buffer, chunks=np.array(state.chunks), **arrays)  # type: ignore[arg-type]
        try:
            write_whole(self._file(block), buffer.getvalue())
        except ConfigError as exc:
            raise ConfigError(f"{exc}; the run can be continued") from exc

    def _file(self, block: int) -> Path:
        return self.path / f"block-{block:03d}.npz"


@contextmanager
def _arrays(file: Path) -> Iterator[Any]:
    """The opened .npz `file`, of which every failure to read is a CheckpointError."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            yield arrays
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as exc:
        raise CheckpointError(f"{file} is damaged ({exc}); delete it to draw its pictures again") from exc


def save_grid(folder: Path, grid: Image.Image) -> None:
    """Write a grid of pictures into `folder`; ConfigError when it cannot be written."""
    buffer = io.BytesIO()
    grid.save(buffer, "PNG")
    write_whole(folder / GRID_FILE, buffer.getvalue())
