"""Memory that this process and a Triton on the same machine both see."""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import uuid
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.runtime.graph_runtime import Array
from models.signature import GraphSpec

PREFIX = "maskbit-"
_FOLDER = Path("/dev/shm")
_ALIGNMENT = 64

Shape = tuple[tuple[int, ...], np.dtype[Any]]


class Region:
    """`size` bytes for the inputs and outputs of one call at a time. OSError when they cannot be had.

    The file behind it is locked as long as its process lives, by which others know what was left behind.
    """

    def __init__(self, size: int) -> None:
        self.name = f"{PREFIX}{uuid.uuid4().hex}"
        self.key = f"/{self.name}"
        self._path = _FOLDER / self.name
        self._file = _locked(self._path)
        try:
            # Reserved now: a page that cannot be had later would end the process.
            os.posix_fallocate(self._file, 0, size)
            self._map = mmap.mmap(self._file, size)
        except OSError:
            _drop(self._path, self._file)
            raise
        self.close = weakref.finalize(self, _drop, self._path, self._file)
        """Let go of the memory, at the latest when the process ends; arrays in it and a server keep it."""

    def lay_out(
        self, sent: Sequence[Any], arrays: Sequence[Array], asked: Sequence[Any], shapes: Sequence[Shape]
    ) -> list[Array]:
        """Write `arrays` for the tensors `sent`; the views that the outputs `asked` for will fill."""
        places, start = [], 0
        for tensor, (shape, dtype) in zip(
            (*sent, *asked), [*((one.shape, one.dtype) for one in arrays), *shapes], strict=True
        ):
            view: Array = np.ndarray(shape, dtype, buffer=self._map, offset=start)
            tensor.set_shared_memory(self.name, view.nbytes, offset=start)
            places.append(view)
            start += _aligned(view.nbytes)
        for place, array in zip(places, arrays, strict=False):
            place[...] = array
        return places[len(arrays) :]


def _locked(path: Path) -> int:
    """A new file at `path`, open and locked."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file).st_nlink:
            return file
        # Another process took it for left behind before it was locked.
        os.close(file)


def _drop(path: Path, file: int) -> None:
    path.unlink(missing_ok=True)
    os.close(file)


def region_size(spec: GraphSpec, rows: int) -> int:
    """Bytes for the inputs and outputs of a graph on `rows` rows."""
    tensors = (*spec.inputs, *spec.outputs)
    return sum(_aligned(rows * math.prod(one.shape) * np.dtype(one.dtype).itemsize) for one in tensors)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def is_orphan(key: str) -> bool:
    """Whether the process that made the region with this key has ended."""
    try:
        file = os.open(f"{_FOLDER}{key}", os.O_RDWR)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(file)


def remove_orphans() -> None:
    """Delete the regions that killed processes left behind."""
    for path in _FOLDER.glob(f"{PREFIX}*"):
        if is_orphan(f"/{path.name}"):
            path.unlink(missing_ok=True)
