"""The ONNX graphs that `maskbit export onnx` puts into a bundle: where they lie, whether they fit it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.bundle import Bundle, file_digest
from models.errors import ConfigError, RuntimeUnavailable
from models.signature import GENERATOR_GRAPHS, TOKENIZER_GRAPHS
from models.validation import from_mapping, require

FOLDER = "onnx"
RECORD = "export.json"
FORMAT_VERSION = 1
PRECISIONS = ("fp32", "fp16", "bf16")
TOKENIZER_DATA = "tokenizer.data"


def graph_file(graph: str, precision: str) -> str:
    """File name of a graph; those of the tokenizer are fp32 always, because a bit is the sign of a latent."""
    return f"{graph}.onnx" if graph in TOKENIZER_GRAPHS else f"{graph}.{precision}.onnx"


def generator_data(precision: str) -> str:
    """File name of the weights that the generator's graphs of a precision share."""
    return f"generator.{precision}.data"


def tokenizer_files() -> list[str]:
    """Names of the files of a tokenizer."""
    return [*(graph_file(graph, "fp32") for graph in TOKENIZER_GRAPHS), TOKENIZER_DATA]


def generator_files(precision: str) -> list[str]:
    """Names of the files of a generator in one precision."""
    return [*(graph_file(graph, precision) for graph in GENERATOR_GRAPHS), generator_data(precision)]


def files_of(bundle: Bundle, precision: str) -> list[str]:
    """Names of all files that a runtime of `precision` needs."""
    return tokenizer_files() + (generator_files(precision) if bundle.manifest.generator is not None else [])


@dataclass(frozen=True)
class Record:
    """The content of `export.json`; `files` maps file names to SHA-256 digests, `bundle` is name@revision.

    `version` and `torch` are those of the exporting maskbit and PyTorch, `opset` that of the graphs.
    `precisions` are the generator's.
    """

    bundle: str
    version: str
    opset: int
    precisions: tuple[str, ...]
    files: Mapping[str, str]
    torch: str = ""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name in self.files:
            require("/" not in name and "\\" not in name, f"files lists {name!r}; paths are not allowed")

    def to_json(self) -> str:
        """Text of `export.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Parse `export.json`; ConfigError for anything that does not belong there."""
        values: Any = json.loads(text)
        if not isinstance(values, dict):
            raise ConfigError("it must hold one JSON object")
        if values.get("format_version") != FORMAT_VERSION:
            raise ConfigError(
                f"format_version is {values.get('format_version')!r}; this version reads {FORMAT_VERSION}"
            )
        return from_mapping(cls, values)


@dataclass(frozen=True)
class Exported:
    """The graphs of a bundle for one precision of the generator."""

    bundle: Bundle
    precision: str
    record: Record

    @property
    def folder(self) -> Path:
        """Where all files lie; graphs refer to their weights beside them."""
        return self.bundle.path / FOLDER

    def file(self, graph: str) -> Path:
        """Path of a graph of `signature.py`."""
        return self.folder / graph_file(graph, self.precision)

    def check(self) -> None:
        """Raise RuntimeUnavailable unless every file that the precision needs is there and undamaged."""
        for name in files_of(self.bundle, self.precision):
            try:
                digest = file_digest(self.folder / name)
            except OSError as exc:
                raise _unusable(
                    self.bundle, self.precision, f"{self.folder / name} cannot be read: {exc.strerror}"
                ) from exc
            if digest != self.record.files[name]:
                raise _unusable(self.bundle, self.precision, f"{self.folder / name} is damaged")


def read_record(bundle: Bundle) -> Record | None:
    """The record of the graphs in a bundle, or None where there are none.

    ConfigError for graphs of another bundle or of another format, and for a record that cannot be read.
    """
    path = bundle.path / FOLDER / RECORD
    try:
        record = Record.from_json(path.read_bytes().decode())
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}") from exc
    except (ConfigError, ValueError, RecursionError) as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    if record.bundle != bundle.ref:
        raise ConfigError(f"{path.parent} holds graphs of {record.bundle}; the bundle is {bundle.ref}")
    return record


def open_export(bundle: Bundle, precision: str) -> Exported:
    """The graphs of `bundle` for a generator in `precision`; a bundle without generator has them for all.

    Digests are left to `Exported.check`. Raises RuntimeUnavailable that names the command to run when there
    are no graphs, or only such of another bundle, format or precision.
    """
    try:
        record = read_record(bundle)
    except ConfigError as exc:
        raise _unusable(bundle, precision, str(exc)) from exc
    if record is None:
        raise _unusable(bundle, precision, f"{bundle.path} has no exported graphs")
    missing = [name for name in files_of(bundle, precision) if name not in record.files]
    if missing:
        had = ", ".join(record.precisions) or "none"
        raise _unusable(bundle, precision, f"{bundle.path} has graphs in {had}, not in {precision}")
    return Exported(bundle, precision, record)


def _unusable(bundle: Bundle, precision: str, reason: str) -> RuntimeUnavailable:
    choice = "" if precision == PRECISIONS[0] else f" --precision {precision}"
    return RuntimeUnavailable(f"{reason}; run: maskbit export onnx {bundle.path}{choice}")
