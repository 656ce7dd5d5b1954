"""Files and folders that are written completely or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from models.errors import ConfigError


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A stream of what becomes the file `path` when the block ends; until then `path` stays as it was.

    The content is gathered in a hidden file beside `path`, which an error removes and a kill leaves behind.
    Raises OSError when it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder that takes the place of `path` when the block ends; until then `path` stays as it was.

    It is filled in a hidden folder beside `path`, which an error removes and a kill leaves behind. Raises
    OSError when it cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
        folder = Path(temporary) / path.name
        folder.mkdir()
        yield folder
        for entry in (*folder.rglob("*"), folder):
            _sync(entry)
        if path.exists():
            _exchange(folder, path)
        else:
            folder.replace(path)
        sync_folder(path.parent)


def _exchange(one: Path, other: Path) -> None:
    """Let two folders change places in one instant, or, where the system cannot, with an instant between."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux; Python has no name
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2 is not None:
        if renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
            return
        if (number := ctypes.get_errno()) not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
            raise OSError(number, os.strerror(number), str(other))
    former = one.with_name(f"{one.name}-former")
    other.replace(former)
    try:
        one.replace(other)
    except OSError:
        former.replace(other)
        raise


def sync_folder(folder: Path) -> None:
    """Make the new name of a renamed file outlast a loss of power."""
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` completely or not at all; ConfigError when it cannot be written."""
    try:
        with whole_file(path) as file:
            file.write(data)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written: {exc.strerror}") from exc
