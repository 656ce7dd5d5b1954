"""Names of the classes of a data set, by class number."""

from __future__ import annotations

import json
from pathlib import Path

from models.errors import ConfigError
from models.validation import require
from training.data.class_folders import class_folders
from training.data.config import DatasetConfig
from training.data.parquet_shard import parquet_class_names
from training.data.remote import beside, open_bytes, path_of
from training.data.sources import expand, is_folder

FILE = "classes.json"
FORM = 'class names are read from a JSON object {"0": name, "1": name, ...}'


def read_class_names(config: DatasetConfig) -> tuple[str, ...]:
    """From the file `dataset.params.classes`; by default from names of class folders, from `classes.json`
    beside the first training shard, or from what the `datasets` library wrote into a Parquet file.

    Raises ConfigError when there is none, or when several folders differ in their classes.
    """
    if config.classes:
        return _from_json(config.classes)
    sources = expand(config.train_shards_path_or_url)
    if is_folder(sources[0]):
        return folder_class_names(sources)
    if Path(path_of(sources[0])).suffix.lower() == ".parquet":
        names = parquet_class_names(sources[0], config.label_column)
        if names:
            return names
    return _from_json(beside(sources[0], FILE))


def folder_class_names(sources: list[str]) -> tuple[str, ...]:
    """Names of the class folders in all folders among `sources`; ConfigError where they differ.

    Labels are positions among the names, so one class more or less would shift all that follow.
    """
    folders = [source for source in sources if is_folder(source)]
    found = [tuple(path.name for path in class_folders(Path(folder))) for folder in folders]
    for folder, names in zip(folders[1:], found[1:], strict=True):
        differing = sorted(set(names) ^ set(found[0]))
        require(
            not differing,
            f"{folders[0]} and {folder} do not have the same class folders ({', '.join(differing[:5])}); "
            "an empty folder stands for a class without pictures",
        )
    return found[0]


def check_class_folders(config: DatasetConfig) -> None:
    """ConfigError unless training and evaluation folders, if they are such, number their classes alike."""
    sources = [
        source
        for pattern in (config.train_shards_path_or_url, config.eval_shards_path_or_url)
        for source in expand(pattern)
    ]
    if any(is_folder(source) for source in sources):
        folder_class_names(sources)


def _from_json(name: str) -> tuple[str, ...]:
    try:
        with open_bytes(name) as stream:
            mapping = json.loads(stream.read())
        names = tuple(str(mapping[str(label)]) for label in range(len(mapping)))
    except (ConfigError, OSError, ValueError, KeyError, TypeError) as exc:
        raise ConfigError(f"{name}: {FORM} ({exc!r})") from exc
    require(bool(names), f"{name}: {FORM}")
    return names
