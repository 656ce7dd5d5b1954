"""What a data set is read from: tar and Parquet shards, by path, pattern or URL, and folders of pictures."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from braceexpand import braceexpand

from models.errors import ConfigError
from models.validation import require
from training.data.folder_shard import folder_shards
from training.data.parquet_shard import ParquetShard
from training.data.remote import is_http, is_url, path_of, unreadable
from training.data.sample import Sample, Shard, log_skipped
from training.data.tar_shard import TarShard

IMAGE_COLUMN, LABEL_COLUMN = "image", "label"
SEPARATOR = "::"
EXPECTED = "expected are .tar or .parquet files, or a folder with one sub-folder of pictures per class"


def expand(pattern: str) -> list[str]:
    """Paths and URLs that `pattern` stands for: globs, {a..b} and {a,b} braces, several joined by `::`.

    ConfigError names a local file that is missing and a glob without a match.
    """
    found: list[str] = []
    missing: list[str] = []
    for part in pattern.split(SEPARATOR):
        try:
            names = list(braceexpand(part))
        except ValueError as exc:
            raise ConfigError(f"{part}: {exc}") from exc
        for name in names:
            matches = _matches(name)
            found += matches
            missing += [] if matches else [name]
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    require(
        not missing, f"nothing found at {', '.join(repr(name) for name in missing[:3])}{more}; {EXPECTED}"
    )
    return found


def _matches(name: str) -> list[str]:
    if is_http(name):
        return [name]  # no web server lists files, and "?" starts a query
    if is_url(name):
        return _remote_matches(name) if glob.has_magic(name) else [name]
    if glob.has_magic(name):
        return sorted(glob.glob(name))
    return [name] if name and Path(name).exists() else []


def _remote_matches(url: str) -> list[str]:
    import fsspec

    try:
        files, path = fsspec.url_to_fs(url)
        return sorted(files.unstrip_protocol(match) for match in files.glob(path))
    except (ImportError, ValueError, OSError) as exc:
        raise unreadable(url, exc) from exc


def find_shards(
    pattern: str, *, image_column: str = IMAGE_COLUMN, label_column: str = LABEL_COLUMN
) -> list[Shard]:
    """The shards of `pattern` in order; the columns are those of Parquet files. Raises ConfigError."""
    shards: list[Shard] = []
    for name in expand(pattern):
        suffix = Path(path_of(name)).suffix.lower()
        if suffix == ".tar":
            shards.append(TarShard(name))
        elif suffix == ".parquet":
            shards.append(ParquetShard(name, image_column, label_column))
        elif is_folder(name):
            shards += folder_shards(Path(name))
        else:
            raise ConfigError(f"{name}: no data set; {EXPECTED}")
    return shards


def is_folder(name: str) -> bool:
    """Whether `name`, a result of expand, is a local folder."""
    return not is_url(name) and Path(name).is_dir()


def all_samples(
    pattern: str, *, image_column: str = IMAGE_COLUMN, label_column: str = LABEL_COLUMN
) -> Iterator[Sample]:
    """All samples once, those with a fault too, in an order that is always the same.

    That of a folder's files is mixed; see folder_shards. ConfigError names a shard that cannot be read.
    """
    for shard in find_shards(pattern, image_column=image_column, label_column=label_column):
        yield from shard.read()


def read_samples(
    pattern: str, *, image_column: str = IMAGE_COLUMN, label_column: str = LABEL_COLUMN
) -> Iterator[Sample]:
    """`all_samples` but for those with a fault, which are logged and left out."""
    for sample in all_samples(pattern, image_column=image_column, label_column=label_column):
        if sample.fault:
            log_skipped(sample, sample.fault)
        else:
            yield sample
