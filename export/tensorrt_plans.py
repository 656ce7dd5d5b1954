"""`maskbit export tensorrt`: plans of a bundle's ONNX graphs for the GPU and the TensorRT at hand."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.onnx_export import Say, export_onnx, say_nothing
from export.tensorrt_build import Recipe, build_plan
from models.bundle import Bundle
from models.errors import BundleError, ConfigError, RuntimeUnavailable
from models.exported import PRECISIONS, TOKENIZER_DATA, Exported, generator_data, graph_file, open_export
from models.runtime.base import CUDA_BUCKETS, TOKENIZER_ROWS
from models.runtime.tensorrt_library import gpu_for, make_log, place_at, tensorrt_module
from models.signature import TOKENIZER_GRAPHS, graph_specs
from models.tensorrt_plan import (
    FOLDER,
    PREFERRED,
    Place,
    PlanRecord,
    find_plan,
    plan_file,
    precision_of,
    record_file,
)
from models.version import own_version
from models.whole_file import whole_file

GIB = 1 << 30


def export_tensorrt(
    bundle: Bundle,
    precisions: Sequence[str] = PREFERRED[:1],
    *,
    device: str = "auto",
    workspace_gib: float | None = None,
    rebuild: bool = False,
    say: Say = say_nothing,
) -> list[Path]:
    """Build the plans of `bundle` that are missing or do not fit, and return the paths of all of them.

    `precisions` are those of the generator. With `rebuild` the fitting ones are built again too. `say` is
    told what is done. Raises ConfigError for an unknown precision, BundleError where the bundle cannot be
    read or written, RuntimeUnavailable without TensorRT or GPU and when TensorRT fails.
    """
    for one in precisions:
        if one not in PRECISIONS:
            raise ConfigError(f"precision is {one!r}; allowed are {', '.join(PRECISIONS)}")
    trt = tensorrt_module()
    gpu = gpu_for(device)
    import torch

    with torch.cuda.device(gpu):
        workspace = None if workspace_gib is None else int(workspace_gib * GIB)
        return PlanWriter(trt, bundle, place_at(trt, gpu), workspace, say).write(precisions, rebuild)


def profile_rows(graph: str) -> tuple[int, ...]:
    """The batch sizes that the plan of a graph is optimized for."""
    largest = TOKENIZER_ROWS if graph in TOKENIZER_GRAPHS else CUDA_BUCKETS[-1]
    return tuple(rows for rows in CUDA_BUCKETS if rows <= largest)


class PlanWriter:
    """Writes the plans of one bundle for one place; `trt` is the package, `workspace` in bytes."""

    def __init__(self, trt: Any, bundle: Bundle, place: Place, workspace: int | None, say: Say) -> None:
        self._trt, self._log = trt, make_log(trt)
        self._bundle, self._place, self._workspace, self._say = bundle, place, workspace, say
        self._specs = graph_specs(bundle.manifest)
        self._timings = bundle.path / FOLDER / f"timing.{place.slug}.cache"

    def write(self, precisions: Sequence[str], rebuild: bool) -> list[Path]:
        """The paths of all plans, of which those are built that do not fit, or all."""
        paths: list[Path] = []
        for precision in precisions:
            exported = self._exported(precision)
            for graph in self._specs:
                path = plan_file(self._bundle, graph, precision, self._place)
                if path in paths:
                    continue  # the tokenizer's, which all precisions share
                if not rebuild and self._fits(graph, exported):
                    self._say(f"{path.name}: fits and stays")
                else:
                    self._build(path, graph, exported)
                paths.append(path)
        return paths

    def _exported(self, precision: str) -> Exported:
        try:
            exported = open_export(self._bundle, precision)
            exported.check()
        except RuntimeUnavailable:
            self._say(f"there are no sound ONNX graphs in {precision}: exporting them first")
            export_onnx(self._bundle, [precision], self._say)
            exported = open_export(self._bundle, precision)
        return exported

    def _fits(self, graph: str, exported: Exported) -> bool:
        try:
            plan = find_plan(self._bundle, graph, exported.precision, self._place)
        except ConfigError as exc:
            self._say(f"built again: {exc}")
            return False
        if plan is None:
            return False
        record = plan.record
        return record.onnx == _sources(graph, exported) and record.rows == profile_rows(graph)

    def _build(self, path: Path, graph: str, exported: Exported) -> None:
        rows, started = profile_rows(graph), time.monotonic()
        self._say(f"{path.name}: building for batches of {', '.join(map(str, rows))}; this takes minutes")
        recipe = Recipe(exported.file(graph), self._specs[graph], rows, self._workspace)
        timings = self._timings.read_bytes() if self._timings.exists() else b""
        plan, timings = build_plan(self._trt, self._log, recipe, timings, self._say)
        self._write(path, plan, self._record(graph, exported, plan), timings)
        self._say(f"{path.name}: {len(plan) / 2**20:.0f} MiB, {time.monotonic() - started:.0f} s")

    def _record(self, graph: str, exported: Exported, plan: bytes) -> PlanRecord:
        return PlanRecord(
            bundle=self._bundle.ref,
            version=own_version(),
            graph=graph,
            precision=precision_of(graph, exported.precision),
            gpu=self._place.gpu,
            tensorrt=self._place.tensorrt,
            rows=profile_rows(graph),
            onnx=_sources(graph, exported),
            sha256=hashlib.sha256(plan).hexdigest(),
        )

    def _write(self, path: Path, plan: bytes, record: PlanRecord, timings: bytes) -> None:
        """Each file as a whole, the record last: a plan without its record is refused."""
        files = {self._timings: timings, path: plan, record_file(path): record.to_json().encode()}
        try:
            path.parent.mkdir(exist_ok=True)
            for name, data in files.items():
                with whole_file(name) as file:
                    file.write(data)
        except OSError as exc:
            raise BundleError(
                f"{path.parent} cannot be written: {exc.strerror}; "
                "maskbit export onnx --out FOLDER makes a copy of a bundle"
            ) from exc


def _sources(graph: str, exported: Exported) -> dict[str, str]:
    """The digests of the ONNX files that a plan is built from."""
    tokenizer = graph in TOKENIZER_GRAPHS
    data = TOKENIZER_DATA if tokenizer else generator_data(exported.precision)
    names = (graph_file(graph, exported.precision), data)
    return {name: exported.record.files[name] for name in names}
