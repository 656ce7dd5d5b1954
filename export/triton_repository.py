"""A model repository for Triton Inference Server: one Triton model for each exported graph of a bundle.

REPOSITORY/<bundle>_<graph>/config.pbtxt      see triton_config.py
                            warmup/           one row of inputs that must not be zero
                            <number>/         a version: the graph, its weights, version.json
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from export.triton_config import WARMUP, Placement, config_text, warmup_files
from export.triton_sources import Choice, sources
from models.bundle import Bundle
from models.errors import ConfigError
from models.runtime.triton_models import Version, model_name, signature_of
from models.signature import GraphSpec, graph_specs
from models.whole_file import whole_folder, write_whole

CONFIG, RECORD = "config.pbtxt", "version.json"


@dataclass(frozen=True)
class Graph:
    """A Triton model in the making: its `folder`, and what `record` says of the version to be added."""

    folder: Path
    spec: GraphSpec
    files: Mapping[str, Path]
    placement: Placement
    record: Record


@dataclass(frozen=True)
class Record:
    """What `version.json` says of a version; versions of one Triton model share all but `version`."""

    version: Version
    backend: str
    signature: Mapping[str, tuple[str, tuple[int, ...]]]

    def to_json(self) -> str:
        """Text of `version.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Parse `version.json`; ValueError, TypeError or LookupError for anything else."""
        values = json.loads(text)
        signature = {name: (kind, tuple(dims)) for name, (kind, dims) in values["signature"].items()}
        return cls(Version(**values["version"]), values["backend"], signature)


def write_repository(bundle: Bundle, repository: Path, choice: Choice) -> int:
    """Add a version of each graph to the Triton models of `bundle`, and return its number.

    `repository` may be new, or hold other models and earlier versions, of which Triton serves the last two.
    Every version appears as a whole, and after it the configuration that tells of it. Raises ConfigError when
    it cannot be written there, RuntimeUnavailable when the bundle has not been exported.
    """
    precision, found = sources(bundle, choice)
    version = Version(bundle.ref, precision)
    graphs = [
        Graph(
            repository / model_name(bundle.manifest.name, name),
            spec,
            found[name].files,
            Placement(
                choice.backend, choice.device, choice.instances, found[name].rows, found[name].profiles
            ),
            Record(version, choice.backend, signature_of(spec)),
        )
        for name, spec in graph_specs(bundle.manifest).items()
    ]
    _check_repository(repository, {graph.folder for graph in graphs})
    known = {graph.folder: _known(graph) for graph in graphs}
    number = 1 + max((number for versions in known.values() for number in versions), default=0)
    try:
        for graph in graphs:
            _write_version(graph, number)
        for graph in graphs:
            versions = known[graph.folder] | {number: version}
            text = config_text(graph.folder.name, graph.spec, graph.placement, versions)
            write_whole(graph.folder / CONFIG, text.encode())
    except OSError as exc:
        raise ConfigError(f"{repository} cannot be written: {exc.strerror or exc}") from exc
    return number


def _check_repository(folder: Path, own: Collection[Path]) -> None:
    """Raise ConfigError for a folder in which there are things, but no models; `own` may be unfinished."""
    try:
        entries = list(folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as exc:
        raise ConfigError(f"{folder} cannot be read: {exc.strerror}") from exc
    if entries and not any(one in own or (one / CONFIG).exists() for one in entries):
        raise ConfigError(f"{folder} holds other things than Triton's models; give a new or an empty folder")


def _known(graph: Graph) -> dict[int, Version]:
    """The versions that a model's folder holds. ConfigError when the new one does not go with them."""
    versions = {}
    for folder in graph.folder.glob("*"):
        if not (folder.is_dir() and folder.name.isdecimal()):
            continue
        try:
            other = Record.from_json((folder / RECORD).read_text())
        except (OSError, ValueError, TypeError, LookupError) as exc:
            raise ConfigError(f"{folder} is no version that maskbit wrote; give another repository") from exc
        if replace(other, version=graph.record.version) != graph.record:
            raise ConfigError(
                f"{folder} is of {other.version.bundle} for the backend {other.backend}, and Triton runs all "
                "versions of a model alike; give another repository, or remove that folder"
            )
        versions[int(folder.name)] = other.version
    return versions


def _write_version(graph: Graph, number: int) -> None:
    warmup = graph.folder / WARMUP
    warmup.mkdir(parents=True, exist_ok=True)
    for name, data in warmup_files(graph.spec).items():
        write_whole(warmup / name, data)
    with whole_folder(graph.folder / str(number)) as fresh:
        for name, source in graph.files.items():
            # A copy, not a link: onnxruntime reads no weights through links, and the bundle may change.
            shutil.copyfile(source, fresh / name)
        (fresh / RECORD).write_text(graph.record.to_json())
