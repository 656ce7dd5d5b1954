"""The file that a long measurement is to be written to."""

from __future__ import annotations

import os
from pathlib import Path

from models.errors import InputError
from models.local_drawing import make_folder


def prepare(path: Path) -> None:
    """Make its folder, before anything is measured. Raises InputError where it could not be written then."""
    make_folder(path.parent)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"cannot write to {path}: it is {'a folder' if path.is_dir() else 'protected'}")
