"""A Parquet file with a column of pictures and one of class numbers, as Hugging Face data sets have them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from shutil import copyfileobj
from typing import Any

from models.errors import ConfigError
from models.validation import require
from training.data.remote import is_http, is_url, open_bytes, unreadable
from training.data.sample import Sample

ROWS = 32  # decoded at a time


@dataclass(frozen=True)
class ParquetShard:
    """`name` is a path or URL. Pictures are bytes, or a struct {bytes, path}; labels are integers."""

    name: str
    image_column: str
    label_column: str

    def read(self, start: int = 0, step: int = 1) -> Iterator[Sample]:
        """See Shard; reads one row group after the other, and none before that of `start`."""
        with _parquet_file(self.name) as file:
            self._check(file.schema_arrow)
            index = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if index + rows > start:
                    yield from self._rows(file, group, index, start, step)
                index += rows

    def _rows(self, file: Any, group: int, index: int, start: int, step: int) -> Iterator[Sample]:
        columns = [self.image_column, self.label_column]
        for batch in file.iter_batches(ROWS, row_groups=[group], columns=columns, use_threads=False):
            images, labels = batch.column(self.image_column), batch.column(self.label_column)
            for row in range(len(batch)):
                if index >= start and (index - start) % step == 0:
                    yield self._sample(index, images[row].as_py(), labels[row].as_py())
                index += 1

    def _sample(self, index: int, image: Any, label: int | None) -> Sample:
        data = image.get("bytes") if isinstance(image, dict) else image
        path = image.get("path") if isinstance(image, dict) else None
        fault = ""
        if not data:
            fault = f"no picture in column {self.image_column}"
        elif label is None or label < 0:
            fault = f"no class number in column {self.label_column} ({label})"
        key = f"{index} ({path})" if path else str(index)
        return Sample(self.name, index, key, data or b"", 0 if fault or label is None else label, fault)

    def _check(self, schema: Any) -> None:
        import pyarrow

        for column in (self.image_column, self.label_column):
            require(
                column in schema.names,
                f"{self.name}: no column {column!r}; there are {', '.join(schema.names)} "
                "(dataset.params.image_column and label_column say which to read)",
            )
        image, label = schema.field(self.image_column).type, schema.field(self.label_column).type
        stored = image
        if pyarrow.types.is_struct(image) and image.get_field_index("bytes") >= 0:
            stored = image.field("bytes").type
        require(
            pyarrow.types.is_binary(stored) or pyarrow.types.is_large_binary(stored),
            f"{self.name}: column {self.image_column!r} is {image}; needed are binary or struct<bytes, path>",
        )
        require(
            pyarrow.types.is_integer(label),
            f"{self.name}: column {self.label_column!r} is {label}; needed are integers, the class numbers",
        )


def parquet_class_names(name: str, label_column: str) -> tuple[str, ...] | None:
    """Class names that the `datasets` library wrote into the file's metadata; None when there are none."""
    with _parquet_file(name) as file:
        try:
            stored = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])
            names = stored["info"]["features"][label_column]["names"]
            return tuple(str(item) for item in names)
        except (ValueError, KeyError, TypeError):
            return None


@contextmanager
def _parquet_file(name: str) -> Iterator[Any]:
    """An open pyarrow ParquetFile, whose errors become ConfigError. One at an http URL is fetched whole."""
    from pyarrow.lib import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        if not is_url(name):
            with ParquetFile(name) as file:
                yield file
            return
        with open_bytes(name) as stream:
            if not is_http(name):
                with ParquetFile(stream) as file:
                    yield file
                return
            with tempfile.TemporaryFile() as copy:
                copyfileobj(stream, copy, 1 << 20)
                with ParquetFile(copy) as file:
                    yield file
    except ArrowException as exc:
        raise ConfigError(f"{name}: not a sound Parquet file ({' '.join(str(exc).split())})") from exc
    except OSError as exc:
        raise unreadable(name, exc) from exc
