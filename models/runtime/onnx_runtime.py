"""The exported graphs in onnxruntime, on a CPU or on an NVIDIA GPU; needs no torch."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

import numpy as np

from models.bundle import Bundle
from models.errors import RuntimeUnavailable, first_line
from models.exported import PRECISIONS, Exported, open_export
from models.runtime.base import CPU_BUCKETS, CUDA_BUCKETS, STRICT_BUCKET
from models.runtime.devices import CPU, place_of
from models.runtime.graph_runtime import Array, GraphRuntime
from models.signature import STEP, GraphSpec, TensorSpec

_ON_CPU, _ON_CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_FATAL = 4  # onnxruntime's severity above that of what it also raises
_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8"}


class OnnxRuntime(GraphRuntime):
    """Runtime of a bundle's exported graphs.

    `device`: `auto` is CUDA where the installed onnxruntime has it and there is a GPU. `precision`: one that
    was exported; `auto` is fp32, on CUDA fp16 if that was exported. `threads` are those of a call on a CPU,
    0 = one for each core. With `strict` every call has one and the same number of rows.

    Raises RuntimeUnavailable, with what to do, where package, provider or a fitting export is missing.
    """

    name = "onnx"

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "auto",
        precision: str = "auto",
        strict: bool = False,
        threads: int = 0,
    ) -> None:
        self._ort = _onnxruntime()
        self.device_name = _choose_device(device, self._ort.get_available_providers())
        usual = CPU_BUCKETS if self.device_name == CPU else CUDA_BUCKETS
        super().__init__(bundle.manifest, (STRICT_BUCKET,) if strict else usual)
        export = _choose_export(bundle, precision, self.device_name)
        export.check()
        self.precision = export.precision
        self._threads = threads or len(os.sched_getaffinity(0))
        if self.device_name == CPU:
            _share_working_memory(self._ort)
        else:
            _find_cuda(self._ort)
        self._sessions = {graph: self._open(export, spec) for graph, spec in self.specs.items()}
        self._buffers: dict[tuple[str, int], _Buffers] = {}

    def warm_up(self) -> None:
        """Run the graphs once, on a GPU in every size: it chooses its kernels for each."""
        for graph, sizes in self.sizes.items():
            self._warm(graph, sizes[:1] if self.device_name == CPU else sizes)

    def _run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        rows = len(next(iter(inputs.values())))
        if (graph, rows) not in self._buffers:
            self._buffers[graph, rows] = _Buffers(
                self._ort, self._sessions[graph], self.specs[graph], rows, self.device_name
            )
        return self._buffers[graph, rows].run(inputs)

    def _open(self, export: Exported, spec: GraphSpec) -> Any:
        """A session of one graph. Raises RuntimeUnavailable when it cannot be had or is another graph."""
        path = export.file(spec.name)
        try:
            # Without the fallback, which would compute on a CPU and print why.
            session = self._ort.InferenceSession(
                path, self._options(spec.name), providers=self._providers(), enable_fallback=0
            )
        except Exception as exc:
            raise RuntimeUnavailable(
                f"onnxruntime {self._ort.__version__} cannot load {path} on {self.device_name}; choose "
                f"another --precision or --runtime: {first_line(exc)}"
            ) from exc
        if self.device_name != CPU and session.get_providers()[0] != _ON_CUDA:
            raise RuntimeUnavailable(
                f"onnxruntime {self._ort.__version__} cannot use {self.device_name}: install the versions of "
                "CUDA and cuDNN that it was built for, or use --device cpu"
            )
        _check_graph(session, export, spec)
        return session

    def _options(self, graph: str) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # A thread that waits must not keep a core busy, which other sessions and processes need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self.device_name == CPU:
            # Memory laid out once for each shape takes twice as much and no less time.
            options.enable_mem_pattern = False
            options.add_session_config_entry("session.use_env_allocators", "1")
            # Without prepacking weights stay mapped from the file; a copy is worth it for `step_guided` only.
            options.add_session_config_entry("session.disable_prepacking", str(int(graph == STEP)))
        return options

    def _providers(self) -> list[str | tuple[str, dict[str, str]]]:
        if self.device_name == CPU:
            return [_ON_CPU]
        cuda = {
            "device_id": self.device_name.partition(":")[2],
            # TF32's mantissa flips bits of tokens.
            "use_tf32": "0",
            # The exhaustive search picks by time, so that two workers might compute differently.
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
        }
        return [(_ON_CUDA, cuda), _ON_CPU]


class _Buffers:
    """Inputs and outputs of a graph for one number of rows, in the device's memory, bound to its session."""

    def __init__(self, ort: Any, session: Any, spec: GraphSpec, rows: int, device: str) -> None:
        kind, _, number = device.partition(":")

        def value(one: TensorSpec) -> Any:
            shape, dtype = (rows, *one.shape), np.dtype(one.dtype)
            return ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, kind, int(number or 0))

        self._session, self._binding = session, session.io_binding()
        self._inputs = {one.name: value(one) for one in spec.inputs}
        self._outputs = {one.name: value(one) for one in spec.outputs}
        for name, bound in self._inputs.items():
            self._binding.bind_ortvalue_input(name, bound)
        for name, bound in self._outputs.items():
            self._binding.bind_ortvalue_output(name, bound)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, in arrays of their own."""
        for name, bound in self._inputs.items():
            bound.update_inplace(inputs[name])
        self._session.run_with_iobinding(self._binding)
        return {name: np.array(bound.numpy()) for name, bound in self._outputs.items()}


def _share_working_memory(ort: Any) -> None:
    """One pool of the CPU's memory for the sessions of this process, which run one after the other."""
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(place, ort.OrtArenaCfg({}))


def _find_cuda(ort: Any) -> None:
    """Load CUDA and cuDNN of pip packages, without its report of what is missing: no session will start."""
    with redirect_stdout(io.StringIO()):
        ort.preload_dlls()


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as exc:
        raise RuntimeUnavailable(
            f"the runtime onnx needs onnxruntime ({first_line(exc)}): pip install 'maskbit-serve[onnx]'"
        ) from exc
    return onnxruntime


def _choose_device(wanted: str, providers: list[str]) -> str:
    """`cpu` or `cuda:<number>`."""
    if wanted == "auto" and _ON_CUDA not in providers:
        return CPU
    device = place_of(wanted)
    if device != CPU and _ON_CUDA not in providers:
        raise RuntimeUnavailable(
            f"device {wanted!r}: the installed onnxruntime has {', '.join(providers)}, and not {_ON_CUDA}; "
            "install onnxruntime-gpu in its place, or use --device cpu"
        )
    return device


def _choose_export(bundle: Bundle, precision: str, device: str) -> Exported:
    if precision not in ("auto", *PRECISIONS):
        raise RuntimeUnavailable(f"precision is {precision!r}; allowed are auto, {', '.join(PRECISIONS)}")
    if precision != "auto":
        return open_export(bundle, precision)
    if device != CPU:
        try:
            return open_export(bundle, "fp16")
        except RuntimeUnavailable:
            pass
    return open_export(bundle, "fp32")


def _check_graph(session: Any, export: Exported, spec: GraphSpec) -> None:
    """RuntimeUnavailable unless a graph says that it is the bundle's and has the tensors of `spec`."""
    told = session.get_modelmeta().custom_metadata_map
    found = [
        (told.get("maskbit.bundle"), told.get("maskbit.graph")),
        _tensors(session.get_inputs()),
        _tensors(session.get_outputs()),
    ]
    wanted = [
        (export.bundle.ref, spec.name),
        {one.name: (one.dtype, one.shape) for one in spec.inputs},
        {one.name: (one.dtype, one.shape) for one in spec.outputs},
    ]
    for got, due in zip(found, wanted, strict=True):
        if got != due:
            raise RuntimeUnavailable(
                f"{export.file(spec.name)} holds {got}, this version needs {due}; "
                f"run: maskbit export onnx {export.bundle.path} --precision {export.precision}"
            )


def _tensors(nodes: Any) -> dict[str, tuple[str | None, tuple[int, ...]]]:
    """Dtypes and shapes of a session's inputs or outputs, as `signature.py` writes them."""
    return {node.name: (_DTYPES.get(node.type), tuple(node.shape[1:])) for node in nodes}
