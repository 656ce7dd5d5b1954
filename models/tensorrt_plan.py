"""The TensorRT plans that `maskbit export tensorrt` put into a bundle: where they lie and whether they fit.

A plan runs on the model of GPU and with the version of TensorRT that it was built by, and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.bundle import Bundle
from models.errors import ConfigError, RuntimeUnavailable
from models.exported import PRECISIONS, read_record
from models.signature import TOKENIZER_GRAPHS
from models.validation import from_mapping, require

FOLDER = "tensorrt"
FORMAT_VERSION = 1
PREFERRED = ("fp16", "bf16", "fp32")
"""What `auto` takes, in this order: bf16 is no faster than fp16, whose mantissa has 3 more bits."""


@dataclass(frozen=True)
class Place:
    """Where a plan runs: `gpu` is NVIDIA's name of the model, `tensorrt` a whole version."""

    gpu: str
    tensorrt: str

    def __str__(self) -> str:
        return f"{self.gpu} with TensorRT {self.tensorrt}"

    @property
    def slug(self) -> str:
        """The same for file names: `nvidia-h200.trt11.4.0.106`."""
        return f"{re.sub('[^a-z0-9]+', '-', self.gpu.lower()).strip('-')}.trt{self.tensorrt}"


@dataclass(frozen=True)
class PlanRecord:
    """What lies as JSON beside a plan. `sha256` is the plan's, `bundle` is name@revision.

    `rows` are the batch sizes of its optimization profiles, in their order. `onnx` maps the files that it was
    built from to their SHA-256 digests. `version` is that of the maskbit that built it.
    """

    bundle: str
    version: str
    graph: str
    precision: str
    gpu: str
    tensorrt: str
    rows: tuple[int, ...]
    onnx: Mapping[str, str]
    sha256: str
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Text of the record."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> PlanRecord:
        """Parse a record; ConfigError for anything that does not belong there."""
        values: Any = json.loads(text)
        require(isinstance(values, dict), "it must hold one JSON object")
        require(
            values.get("format_version") == FORMAT_VERSION,
            f"format_version is {values.get('format_version')!r}; this version reads {FORMAT_VERSION}",
        )
        return from_mapping(cls, values)


@dataclass(frozen=True)
class Plan:
    """A plan that was read and found to fit; `command` builds it."""

    record: PlanRecord
    data: bytes
    command: str


def precision_of(graph: str, precision: str) -> str:
    """The arithmetic of a graph in a set of plans: that of the tokenizer is fp32 always."""
    return "fp32" if graph in TOKENIZER_GRAPHS else precision


def plan_file(bundle: Bundle, graph: str, precision: str, place: Place) -> Path:
    """Where the plan of a graph belongs."""
    return bundle.path / FOLDER / f"{graph}.{precision_of(graph, precision)}.{place.slug}.plan"


def record_file(plan: Path) -> Path:
    """Where the record of a plan belongs."""
    return plan.with_name(f"{plan.name}.json")


def find_plan(bundle: Bundle, graph: str, precision: str, place: Place) -> Plan | None:
    """The plan of a graph for `place`, or None where there is none.

    ConfigError for one of another bundle, GPU, version or format, for one that was built from other graphs
    than those that lie in the bundle, if any do, and for a damaged or unreadable one.
    """
    path = plan_file(bundle, graph, precision, place)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}") from exc
    try:
        record = _read_record(record_file(path))
        built, named = Place(record.gpu, record.tensorrt), (record.graph, record.precision)
        mine = (graph, precision_of(graph, precision))
        require(record.bundle == bundle.ref, f"it is of {record.bundle}; the bundle is {bundle.ref}")
        require(built == place, f"it is for {built}; this is {place}")
        require(named == mine, f"it is {' in '.join(named)} under another name")
        require(hashlib.sha256(data).hexdigest() == record.sha256, "it is damaged")
        export = read_record(bundle)
        if export is not None:
            now = {name: export.files.get(name) for name in record.onnx}
            require(record.onnx == now, "it was built from ONNX graphs that are no more in the bundle")
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    return Plan(record, data, _command(bundle, precision))


def open_plan(bundle: Bundle, graph: str, precision: str, place: Place) -> Plan:
    """The plan of a graph for `place`.

    Raises RuntimeUnavailable that names the command to run when there is none that fits.
    """
    try:
        plan = find_plan(bundle, graph, precision, place)
        require(plan is not None, _none_here(bundle, graph, precision, place))
    except ConfigError as exc:
        raise RuntimeUnavailable(f"{exc}; run: {_command(bundle, precision)}") from exc
    assert plan is not None
    return plan


def choose_precision(bundle: Bundle, wanted: str, graphs: Iterable[str], place: Place) -> str:
    """`wanted`, or for `auto` the first of PREFERRED of which there are plans for `place`, else the first.

    Raises RuntimeUnavailable for a word that names no precision.
    """
    if wanted != "auto":
        if wanted not in PRECISIONS:
            raise RuntimeUnavailable(f"precision is {wanted!r}; allowed are auto, {', '.join(PRECISIONS)}")
        return wanted
    names = list(graphs)
    complete = (
        precision
        for precision in PREFERRED
        if all(plan_file(bundle, graph, precision, place).exists() for graph in names)
    )
    return next(complete, PREFERRED[0])


def places_of(bundle: Bundle) -> set[Place]:
    """What the plans in a bundle are for; those without a readable record are left out."""
    places = set()
    for path in (bundle.path / FOLDER).glob("*.plan"):
        with suppress(ConfigError):
            record = _read_record(record_file(path))
            places.add(Place(record.gpu, record.tensorrt))
    return places


def _command(bundle: Bundle, precision: str) -> str:
    choice = "" if precision == PREFERRED[0] else f" --precision {precision}"
    return f"maskbit export tensorrt {bundle.path}{choice}"


def _read_record(path: Path) -> PlanRecord:
    try:
        return PlanRecord.from_json(path.read_bytes().decode())
    except OSError as exc:
        raise ConfigError(f"its record {path.name} cannot be read: {exc.strerror}") from exc
    except (ConfigError, ValueError, RecursionError) as exc:
        raise ConfigError(f"its record {path.name} is unusable: {exc}") from exc


def _none_here(bundle: Bundle, graph: str, precision: str, place: Place) -> str:
    prefix, suffix = f"{graph}.{precision_of(graph, precision)}.", ".plan"
    paths = (bundle.path / FOLDER).glob(f"{prefix}*{suffix}")
    others = sorted(path.name.removeprefix(prefix).removesuffix(suffix) for path in paths)
    wanted = f"{bundle.path} has no TensorRT plan of {graph} in {precision_of(graph, precision)}"
    return f"{wanted} for {place}" + (f", but for {', '.join(others)}" if others else "")
