"""Write labelled pictures as WebDataset shards, all or none; the same pictures give the same bytes."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models.validation import require

CLASSES = "classes.json"
PARTIAL = ".partial-"


@dataclass(frozen=True)
class Picture:
    """A compressed picture: its bytes, its format as a file suffix without dot, and its class."""

    data: bytes
    suffix: str
    label: int


@contextmanager
def new_data_set(out: Path, class_names: Sequence[str]) -> Iterator[Path]:
    """A hidden folder for shards, whose files move to `out` when the block ends well, the class names last.

    ConfigError when `out` holds something already (hidden files aside).
    """
    require(not out.exists() or out.is_dir(), f"{out} is a file; the shards need a folder")
    out.mkdir(parents=True, exist_ok=True)
    found = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    require(not found, f"{out} is not empty (it holds {', '.join(found[:3])}); give a new or an empty folder")
    for remains in out.glob(f"{PARTIAL}*"):
        shutil.rmtree(remains)  # of a run that was killed
    with tempfile.TemporaryDirectory(dir=out, prefix=PARTIAL) as name:
        partial = Path(name)
        yield partial
        for shard in sorted(partial.iterdir()):
            shard.replace(out / shard.name)
        names = {str(label): class_name for label, class_name in enumerate(class_names)}
        (partial / CLASSES).write_text(
            json.dumps(names, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (partial / CLASSES).replace(out / CLASSES)


def write_shards(folder: Path, split: str, chunks: Iterable[Iterable[Picture]]) -> int:
    """Write each chunk as `<split>-NNNNNN.tar` and return the number of pictures; keys count them through."""
    count = 0
    for number, chunk in enumerate(chunks):
        with tarfile.open(folder / f"{split}-{number:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as shard:
            for picture in chunk:
                _add(shard, f"{count:08d}.{picture.suffix}", picture.data)
                _add(shard, f"{count:08d}.cls", str(picture.label).encode())
                count += 1
    return count


def _add(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)  # time, owner and mode keep their constant defaults
    entry.size = len(data)
    shard.addfile(entry, io.BytesIO(data))
