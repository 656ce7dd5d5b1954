"""Pictures in a folder with one sub-folder per class, read as if they had been made into shards."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.validation import require
from training.data.class_folders import class_folders, files_below
from training.data.remote import unreadable
from training.data.sample import Sample

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FILES_PER_SHARD = 256
ORDER_SEED = 0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderShard:
    """Some files of a folder; `paths` are relative to `root` and joined by NUL.

    A million Python strings would be copied into every loader process by the mere counting of references.
    """

    name: str
    root: str
    paths: str
    labels: array[int]

    def read(self, start: int = 0, step: int = 1) -> Iterator[Sample]:
        """See Shard; a file that cannot be read has a fault."""
        paths = self.paths.split("\0")
        for index in range(start, len(paths), step):
            data, fault = b"", ""
            try:
                data = Path(self.root, paths[index]).read_bytes()
            except OSError as exc:
                fault = str(unreadable(paths[index], exc))
            yield Sample(self.name, index, paths[index], data, self.labels[index], fault)


def folder_shards(root: Path) -> list[FolderShard]:
    """All pictures of the class folders in `root`, in an order that mixes the classes and is always the same.

    Classes are numbered by name. Raises ConfigError when there are none.
    """
    entries: list[tuple[str, int]] = []
    others = 0
    for label, folder in enumerate(class_folders(root)):
        files = files_below(folder)
        pictures = [file for file in files if file.suffix.lower() in SUFFIXES]
        others += len(files) - len(pictures)
        entries += [(str(file.relative_to(root)), label) for file in pictures]
    require(bool(entries), f"{root}: no pictures ({', '.join(SUFFIXES)}) in its sub-folders")
    if others:
        log.warning("%s: %d files are left out; pictures end in %s", root, others, ", ".join(SUFFIXES))
    order = np.random.default_rng(ORDER_SEED).permutation(len(entries))
    return [_shard(root, entries, order, start) for start in range(0, len(order), FILES_PER_SHARD)]


def _shard(root: Path, entries: list[tuple[str, int]], order: NDArray[np.int64], start: int) -> FolderShard:
    chosen = [entries[i] for i in order[start : start + FILES_PER_SHARD]]
    name = f"{root} (pictures {start} to {start + len(chosen) - 1} of {len(entries)})"
    paths = "\0".join(path for path, _ in chosen)
    return FolderShard(name, str(root), paths, array("L", [label for _, label in chosen]))
