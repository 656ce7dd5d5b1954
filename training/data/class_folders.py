"""A folder with one sub-folder of pictures per class: which classes and files it has."""

from __future__ import annotations

import os
from pathlib import Path

from models.validation import require


def class_folders(source: Path) -> list[Path]:
    """Sub-folders of `source` by name, hidden ones left out; ConfigError when there are none."""
    require(source.is_dir(), f"no folder {source}; give one that holds a sub-folder of pictures per class")
    folders = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    require(bool(folders), f"{source} has no sub-folders; one per class is needed")
    return folders


def files_below(folder: Path) -> list[Path]:
    """Files below `folder` by path, hidden ones left out; links are followed, each folder is walked once."""
    files: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:
            folders.clear()  # a link to a folder that was walked already, perhaps to one above itself
            continue
        seen.add(os.path.realpath(place))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(files)
