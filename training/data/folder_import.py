"""WebDataset shards from an ImageFolder-like directory: one sub-folder per class (`maskbit data folder`)."""

from __future__ import annotations

import io
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from models.validation import require
from training.data.class_folders import class_folders, files_below
from training.data.pictures import FORMATS, to_rgb
from training.data.shard_writer import Picture, new_data_set, write_shards
from training.data.transforms import center_fit

KEPT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # formats that go into shards byte by byte
QUALITY = 95  # of pictures that must be encoded anew
EXIF_ORIENTATION = 0x0112

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderReport:
    """What became of the folder; `skipped` are the files that could not be read as pictures."""

    classes: tuple[str, ...]
    train: int
    val: int
    skipped: tuple[Path, ...]


def shards_from_folder(
    source: Path,
    out: Path,
    *,
    image_size: int | None = None,
    val_share: float = 0.1,
    samples_per_shard: int = 1000,
    seed: int = 0,
) -> FolderReport:
    """Write `train-*.tar`, `val-*.tar` and `classes.json` to `out` from the class folders of `source`.

    Classes are numbered by name. Of every class the share `val_share` becomes validation pictures; both
    splits are shuffled by `seed`. With `image_size`, in pixels, pictures are resized on the short side and
    centre-cropped, else JPEG, PNG and WebP files are stored as they are. Raises ConfigError when there is
    nothing to do or `out` is in use.
    """
    require(0 <= val_share < 1, f"val_share is {val_share}; allowed is 0 <= share < 1")
    require(samples_per_shard >= 1, f"samples_per_shard is {samples_per_shard}; it must be at least 1")
    require(image_size is None or image_size >= 1, f"image_size is {image_size}; it must be at least 1")
    classes = class_folders(source)
    inside = out.resolve().is_relative_to(source.resolve())
    require(not inside, f"{out} lies in {source}; shards would become a class of their own")
    splits = split_files([picture_files(folder) for folder in classes], val_share, seed)
    loader = _Loader(image_size)
    names = tuple(folder.name for folder in classes)
    with new_data_set(out, names) as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        counts = {
            split: write_shards(folder, split, loader.chunks(pool, files, samples_per_shard, split))
            for split, files in splits.items()
            if files
        }
        empty = [name for label, name in enumerate(names) if label not in loader.labels]
        require(not empty, f"no readable picture in {', '.join(str(source / name) for name in empty)}")
    return FolderReport(names, counts.get("train", 0), counts.get("val", 0), tuple(sorted(loader.skipped)))


def picture_files(folder: Path) -> list[Path]:
    """Files of a class; ConfigError when there are none."""
    files = files_below(folder)
    require(bool(files), f"class folder {folder} holds no pictures; fill or remove it")
    return files


def split_files(files: list[list[Path]], val_share: float, seed: int) -> dict[str, list[tuple[Path, int]]]:
    """Shuffled (file, label) lists "train" and "val"; `files` has one list per class.

    A class of two or more files gives at least one to either split, unless `val_share` is 0.
    """
    splits: dict[str, list[tuple[Path, int]]] = {"train": [], "val": []}
    for label, paths in enumerate(files):
        order = np.random.default_rng([seed, label]).permutation(len(paths))
        held_out = min(max(round(len(paths) * val_share), 1), len(paths) - 1) if val_share else 0
        for position, index in enumerate(order):
            splits["val" if position < held_out else "train"].append((paths[index], label))
    rng = np.random.default_rng(seed)
    return {split: [entries[i] for i in rng.permutation(len(entries))] for split, entries in splits.items()}


class _Loader:
    """Reads pictures for shards and remembers which failed; `load` is called from several threads."""

    def __init__(self, image_size: int | None) -> None:
        self.image_size = image_size
        self.labels: set[int] = set()
        self.skipped: list[Path] = []
        self._lock = threading.Lock()

    def chunks(
        self, pool: Executor, files: list[tuple[Path, int]], size: int, title: str
    ) -> Iterator[Iterator[Picture]]:
        """Pictures of `files` in order, at most `size` at a time in memory."""
        for start in track(range(0, len(files), size), title, transient=True):
            loaded = pool.map(self.load, files[start : start + size])
            yield (picture for picture in loaded if picture is not None)

    def load(self, entry: tuple[Path, int]) -> Picture | None:
        """The picture of (file, label); None, with the path logged, when it cannot be read."""
        path, label = entry
        try:
            data, suffix = stored_picture(path.read_bytes(), self.image_size)
        except Exception as exc:  # a broken file can trip Pillow's decoders in any way
            log.warning("%s cannot be read as a picture and was skipped: %s", path, exc)
            with self._lock:
                self.skipped.append(path)
            return None
        with self._lock:
            self.labels.add(label)
        return Picture(data, suffix, label)


def stored_picture(data: bytes, image_size: int | None) -> tuple[bytes, str]:
    """(bytes, suffix) to store for the picture file `data`, which is decoded completely to prove it sound."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image.load()
        plain = image.getexif().get(EXIF_ORIENTATION, 1) == 1 and image.mode in ("L", "RGB")
        if image_size is None and plain and image.format in KEPT:
            return data, KEPT[image.format]
        picture = to_rgb(image)
    if image_size is not None:
        picture = center_fit(picture, image_size)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY)
    return buffer.getvalue(), "webp"
