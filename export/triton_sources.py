"""What goes into a version of a Triton model: an ONNX graph with its weights, or a TensorRT plan."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from export.tensorrt_plans import profile_rows
from export.triton_config import BACKENDS, CPU, DEVICES, GPU, ONNXRUNTIME, PYTHON, TENSORRT
from models.bundle import Bundle
from models.errors import ConfigError, RuntimeUnavailable
from models.exported import PRECISIONS, TOKENIZER_DATA, Exported, generator_data, open_export
from models.runtime.base import CPU_BUCKETS, STRICT_BUCKET
from models.signature import TOKENIZER_GRAPHS, graph_specs
from models.tensorrt_plan import Place, choose_precision, open_plan, places_of, plan_file
from models.validation import require

PYTHON_MODEL = Path(__file__).parent / "triton_model.py"


@dataclass(frozen=True)
class Choice:
    """How Triton is to compute: with which backend, on `device` cpu or gpu, with `instances` of each graph.

    `strict`: in batches of one size alone. `plans` says where TensorRT plans are for, such as
    `nvidia-h200.trt10.13.0.35`, if the bundle has them for several. `precision` is the generator's.
    """

    backend: str = ONNXRUNTIME
    precision: str = "auto"
    device: str = CPU
    instances: int = 1
    strict: bool = False
    plans: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in {
            "backend": BACKENDS,
            "precision": ("auto", *PRECISIONS),
            "device": DEVICES if self.backend != TENSORRT else (GPU,),
        }.items():
            value = getattr(self, name)
            require(value in allowed, f"{name} is {value!r}; allowed are {', '.join(allowed)}")
        require(self.instances > 0, f"instances is {self.instances}; allowed are numbers from 1 on")


@dataclass(frozen=True)
class Source:
    """Files of a version by their names there. `rows` are the batch sizes that it is made for, ascending.

    `profiles` are the numbers of those that a TensorRT plan has for them, in the same order.
    """

    files: Mapping[str, Path]
    rows: tuple[int, ...]
    profiles: tuple[int, ...] = ()


def sources(bundle: Bundle, choice: Choice) -> tuple[str, dict[str, Source]]:
    """The precision that was chosen, and what a version of each graph holds.

    Raises RuntimeUnavailable, with the command that makes what is missing, and ConfigError for plans that are
    not there.
    """
    graphs = graph_specs(bundle.manifest)
    if choice.backend == TENSORRT:
        place = _place(bundle, choice.plans)
        precision = choose_precision(bundle, choice.precision, graphs, place)
        found = {graph: _plan(bundle, graph, precision, place) for graph in graphs}
    else:
        exported = _exported(bundle, choice)
        exported.check()
        precision = exported.precision
        found = {graph: _onnx(exported, graph, choice) for graph in graphs}
    return precision, {graph: _strict(source) if choice.strict else source for graph, source in found.items()}


def _exported(bundle: Bundle, choice: Choice) -> Exported:
    """The ONNX graphs; `auto` is fp16 on a GPU if that was exported, else fp32."""
    if choice.precision != "auto":
        return open_export(bundle, choice.precision)
    if choice.device == GPU:
        with suppress(RuntimeUnavailable):
            return open_export(bundle, "fp16")
    return open_export(bundle, "fp32")


def _onnx(exported: Exported, graph: str, choice: Choice) -> Source:
    tokenizer = graph in TOKENIZER_GRAPHS
    data = TOKENIZER_DATA if tokenizer else generator_data(exported.precision)
    files = {"model.onnx": exported.file(graph), data: exported.folder / data}
    if choice.backend == PYTHON:
        files["model.py"] = PYTHON_MODEL
    return Source(files, CPU_BUCKETS if choice.device == CPU else profile_rows(graph))


def _plan(bundle: Bundle, graph: str, precision: str, place: Place) -> Source:
    rows = open_plan(bundle, graph, precision, place).record.rows
    return Source({"model.plan": plan_file(bundle, graph, precision, place)}, rows, tuple(range(len(rows))))


def _strict(source: Source) -> Source:
    """`source` for one batch size alone."""
    profiles = (source.rows.index(STRICT_BUCKET),) if source.profiles else ()
    return replace(source, rows=(STRICT_BUCKET,), profiles=profiles)


def _place(bundle: Bundle, slug: str | None) -> Place:
    """The GPU and the TensorRT that the plans of a bundle are for."""
    places = {place.slug: place for place in places_of(bundle)}
    if slug is None and len(places) == 1:
        return next(iter(places.values()))
    if slug in places:
        return places[slug]
    if not places:
        raise RuntimeUnavailable(
            f"{bundle.path} has no TensorRT plans; run: maskbit export tensorrt {bundle.path}"
        )
    raise ConfigError(f"plans is {slug!r}; {bundle.path} has plans for {', '.join(sorted(places))}")
