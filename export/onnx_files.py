"""Graphs on disk: weights that graphs share, and what is checked of every graph that is written."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from models.errors import RuntimeUnavailable
from models.runtime.graph_runtime import plausible
from models.signature import BATCH, GraphSpec, TensorSpec

if TYPE_CHECKING:
    import onnx
    import onnx_ir

SMALLEST = 1024  # bytes; smaller tensors, shapes among them, stay inside the graph
ALIGNMENT = 4096  # bytes, a page: tensors can be mapped into memory
PROOF_ROWS = (1, 2)  # other sizes than the traced one


class WeightsFile:
    """A file of external data for several graphs, in which equal tensors stand once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets: dict[bytes, int] = {}
        path.touch()

    def take(self, model: onnx_ir.Model) -> None:
        """Move the weights of `model` into the file."""
        with self._path.open("ab") as file:
            for value in model.graph.initializers.values():
                tensor = value.const_value
                if tensor is not None and tensor.nbytes >= SMALLEST:
                    value.const_value = self._moved(tensor, value.name or "", file)

    def _moved(self, tensor: onnx_ir.TensorProtocol, name: str, file: BinaryIO) -> onnx_ir.ExternalTensor:
        import onnx_ir

        data = tensor.tobytes()
        digest = hashlib.sha256(data).digest()
        if digest not in self._offsets:
            file.write(bytes(-file.tell() % ALIGNMENT))
            self._offsets[digest] = file.tell()
            file.write(data)
        return onnx_ir.ExternalTensor(
            self._path.name,
            self._offsets[digest],
            len(data),
            tensor.dtype,
            shape=onnx_ir.Shape(tensor.shape.numpy()),
            name=name,
            base_dir=self._path.parent,
        )


def write_graph(model: onnx_ir.Model, spec: GraphSpec, path: Path) -> None:
    """Write `model`, whose weights are in files beside `path`, with the shapes of all values inferred.

    Raises RuntimeUnavailable unless it is valid ONNX with the inputs and outputs of `spec`.
    """
    import onnx
    import onnx_ir

    try:
        graph = onnx.shape_inference.infer_shapes(
            onnx_ir.to_proto(model), check_type=True, strict_mode=True, data_prop=True
        )
        onnx.save_model(graph, path)
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise RuntimeUnavailable(f"{_blame(spec)} is no valid ONNX: {str(exc).strip()}") from exc
    check_borders(graph, spec)
    check_shapes(graph, spec)


def check_borders(model: onnx.ModelProto, spec: GraphSpec) -> None:
    """Raise RuntimeUnavailable unless inputs and outputs are those of `spec`, the batch size being free."""
    for values, wanted in ((model.graph.input, spec.inputs), (model.graph.output, spec.outputs)):
        got = [_told(value) for value in values]
        if got != (told := [_spec_told(one) for one in wanted]):
            raise RuntimeUnavailable(f"{_blame(spec)} has {', '.join(got)} instead of {', '.join(told)}")


def check_shapes(model: onnx.ModelProto, spec: GraphSpec) -> None:
    """Raise RuntimeUnavailable unless the number of dimensions of every value is known."""
    known = {value.name for value in model.graph.value_info if value.type.tensor_type.HasField("shape")}
    known |= {value.name for value in model.graph.output}
    unknown = [name for node in model.graph.node for name in node.output if name and name not in known]
    if unknown:
        raise RuntimeUnavailable(f"{_blame(spec)} has values without a shape: {', '.join(unknown[:5])}")


def run_graph(path: Path, spec: GraphSpec) -> None:
    """Run a graph in onnxruntime on a CPU at batch sizes that it was not traced with.

    Raises RuntimeUnavailable when it fails or answers with other shapes than `spec` says.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows in PROOF_ROWS:
        outputs = session.run(None, plausible(spec, rows))
        for one, output in zip(spec.outputs, outputs, strict=True):
            if output.shape != (rows, *one.shape) or output.dtype != np.dtype(one.dtype):
                raise RuntimeUnavailable(
                    f"{_blame(spec)} answers {rows} rows with {one.name} {output.dtype}{list(output.shape)}"
                )


def why_not_run(precision: str) -> str | None:
    """Why `run_graph` cannot run graphs of `precision` here, None where it can."""
    if find_spec("onnxruntime") is None:
        return "the package onnxruntime is not installed"
    return "onnxruntime has no bf16 on a CPU" if precision == "bf16" else None


def _told(value: onnx.ValueInfoProto) -> str:
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    sizes = ", ".join(str(dim.dim_param or dim.dim_value) for dim in tensor.shape.dim)
    return f"{value.name} {tensor_dtype_to_np_dtype(tensor.elem_type)}[{sizes}]"


def _spec_told(one: TensorSpec) -> str:
    return f"{one.name} {one.dtype}[{', '.join(map(str, (BATCH, *one.shape)))}]"


def _blame(spec: GraphSpec) -> str:
    import torch

    return f"the graph {spec.name} that PyTorch {torch.__version__} exported"
