"""A stand-in for the package `tensorrt` and a GPU, which no test machine has: what our code calls of them.

It compiles nothing: its plans are JSON of what was asked for, so that a test can read them. ONNX files are
read for real, and run by onnxruntime on whatever is at the addresses that it was given. A test holds its
names to those of the real package.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_uint8
from enum import IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from export.tensorrt_plans import PlanWriter
from models.bundle import Bundle
from models.runtime import tensorrt_runtime
from models.signature import GraphSpec, graph_specs
from models.tensorrt_plan import Place, open_plan

VERSION = "11.4.0.106"
H200 = Place("NVIDIA H200", VERSION)
SCRATCH, WEIGHTS = 512, 1000  # bytes that every plan says it needs


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = Severity

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(IntEnum):
    TF32 = 7


class MemoryPoolType(IntEnum):
    WORKSPACE = 0


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self.timed = json.loads(data) if data else []

    def serialize(self) -> bytes:
        return json.dumps(self.timed).encode()


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[Sequence[int]]] = {}

    def set_shape(self, name: str, low: Sequence[int], opt: Sequence[int], high: Sequence[int]) -> None:
        self.shapes[name] = [low, opt, high]


class IBuilderConfig:
    def __init__(self) -> None:
        self.flags = {BuilderFlag.TF32}
        self.profiles: list[dict[str, list[Sequence[int]]]] = []
        self.workspace: int | None = None
        self.progress_monitor: Any = None
        self.cache: ITimingCache | None = None

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self.workspace = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        try:
            return ITimingCache(serialized_timing_cache)
        except ValueError:
            return None

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.creation_flags = flags
        self.path = ""
        self.inputs: list[str] = []


class ParserError:
    def __init__(self, node: onnx.NodeProto) -> None:
        self._node = node

    def node_name(self) -> str:
        return self._node.name

    def node_operator(self) -> str:
        return self._node.op_type

    def desc(self) -> str:
        return f"no importer for {self._node.op_type}"


class OnnxParser:
    """Reads real ONNX; `unknown` are operators that it does not know."""

    unknown: tuple[str, ...] = ()

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network
        self._errors: list[ParserError] = []

    def parse_from_file(self, model: str) -> bool:
        graph = onnx.load(model, load_external_data=True).graph
        self._network.path = model
        self._network.inputs = [value.name for value in graph.input]
        self._errors = [ParserError(node) for node in graph.node if node.op_type in self.unknown]
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]


class Builder:
    """Builds unless `failure` holds a reason not to; `built` lists the files that plans were made of."""

    failure = ""
    built: tuple[str, ...] = ()

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
        config.progress_monitor.phase_start("Building", None, 2)
        if self.failure:
            self._logger.log(Severity.ERROR, f"{self.failure}\nand more lines")
            return None
        assert all(sorted(shapes) == sorted(network.inputs) for shapes in config.profiles)
        assert config.cache is not None
        asked = {
            "onnx": network.path,
            "creation_flags": network.creation_flags,
            "tf32": BuilderFlag.TF32 in config.flags,
            "profiles": config.profiles,
            "workspace": config.workspace,
            "timed_before": list(config.cache.timed),
        }
        name = Path(network.path).name
        config.cache.timed.append(name)
        Builder.built += (name,)
        return json.dumps(asked).encode()


class EngineStat(IntEnum):
    TOTAL_WEIGHTS_SIZE = 0


class ExecutionContextAllocationStrategy(IntEnum):
    USER_MANAGED = 2


class IExecutionContext:
    """Runs the graph of a plan on the CPU; insists on what TensorRT insists on."""

    def __init__(self, asked: dict[str, Any], session: onnxruntime.InferenceSession) -> None:
        self._asked, self._session = asked, session
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._profile: dict[str, Any] = {}
        self._scratch = 0

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = self._asked["profiles"][profile_index]
        return stream_handle == HostLane.handle

    def set_device_memory(self, memory: int, size: int) -> None:
        self._scratch = size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._profile[name]
        self._shapes[name] = shape
        return tuple(low) == shape == tuple(high)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self._scratch >= SCRATCH
        assert stream_handle == HostLane.handle
        HostLane.latest.give(self._execute)
        return True

    def _execute(self) -> None:
        inputs = {
            one.name: self._at(one.name, self._shapes[one.name], one.type)
            for one in self._session.get_inputs()
        }
        rows = len(next(iter(inputs.values())))
        for one, result in zip(self._session.get_outputs(), self._session.run(None, inputs), strict=True):
            np.copyto(self._at(one.name, (rows, *one.shape[1:]), one.type), result)

    def _at(self, name: str, shape: tuple[int, ...], ort_type: str) -> NDArray[Any]:
        dtype = np.dtype(ort_type.removeprefix("tensor(").removesuffix(")").replace("float", "float32"))
        count = int(np.prod(shape)) * dtype.itemsize
        memory = (c_uint8 * count).from_address(self._addresses[name])
        return np.ndarray(shape, dtype, memoryview(memory))


class ICudaEngine:
    device_memory_size_v2 = SCRATCH

    def __init__(self, data: bytes) -> None:
        self._asked = json.loads(data)
        self._session = onnxruntime.InferenceSession(self._asked["onnx"], providers=["CPUExecutionProvider"])
        self._names: list[str] = [
            one.name for one in (*self._session.get_inputs(), *self._session.get_outputs())
        ]

    @property
    def num_io_tensors(self) -> int:
        return len(self._names)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_engine_stat(self, stat: EngineStat) -> int:
        return WEIGHTS

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> IExecutionContext:
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        return IExecutionContext(self._asked, self._session)


class Runtime:
    """Loads plans unless `failure` holds a reason not to."""

    failure = ""

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        if self.failure:
            self._logger.log(Severity.ERROR, self.failure)
            return None
        return ICudaEngine(serialized_engine)


class HostMemory(torch.Tensor):
    """Memory that copies reach when their lane is waited for."""

    lane: HostLane

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> HostMemory:
        assert non_blocking
        assert self.lane.is_active, "PyTorch copies on its usual stream"
        self.lane.give(lambda: torch.Tensor.copy_(self, source))
        return self


class HostLane:
    """The CPU in place of `CudaLane`, as late as a GPU may be: nothing is done before `wait`.

    `captured` counts what was captured; `latest` is the lane that was made last.
    """

    handle, captured = 99, 0
    latest: HostLane

    def __init__(self, device: str) -> None:
        self.device, self.is_active = device, False
        self._given: list[Callable[[], object]] = []
        HostLane.latest = self

    def give(self, work: Callable[[], object]) -> None:
        self._given.append(work)

    @contextmanager
    def active(self) -> Iterator[None]:
        before, self.is_active = self.is_active, True
        yield
        self.is_active = before

    def wait(self) -> None:
        while self._given:
            self._given.pop(0)()

    def memory(self, size: int) -> torch.Tensor:
        made = torch.full((size,), 255, dtype=torch.uint8).as_subclass(HostMemory)
        made.lane = self
        return made

    pinned = memory

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        HostLane.captured += 1
        with self.active():
            work()
        self.wait()
        work()
        graph = self._given.copy()
        self._given.clear()

        def replay() -> None:
            assert self.is_active, "a replay is launched on the usual stream"
            self._given.extend(graph)

        return replay

    def reserved_bytes(self) -> int:
        return 1 << 20


def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """All this as a module called `tensorrt` in its version 11.4, as good as new."""
    made: Any = ModuleType("tensorrt")
    vars(made).update(globals(), __version__=VERSION)
    for owner, name, value in (
        (Builder, "failure", ""),
        (Builder, "built", ()),
        (OnnxParser, "unknown", ()),
        (Runtime, "failure", ""),
        (HostLane, "captured", 0),
    ):
        monkeypatch.setattr(owner, name, value)
    return made


def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in as the package `tensorrt` and its GPU, an H200."""
    made = module(monkeypatch)
    monkeypatch.setitem(sys.modules, "tensorrt", made)
    monkeypatch.setattr(tensorrt_runtime, "CudaLane", HostLane)
    monkeypatch.setattr(tensorrt_runtime, "gpu_for", lambda device: "cuda:0")
    monkeypatch.setattr(tensorrt_runtime, "place_at", lambda trt, gpu: H200)
    return made


class Maker:
    """Makes plans of a bundle with the stand-in, and remembers what it was told."""

    def __init__(self, trt: Any, bundle: Bundle) -> None:
        self.trt, self.bundle = trt, bundle
        self.lines: list[str] = []

    @property
    def specs(self) -> dict[str, GraphSpec]:
        """The bundle's graphs."""
        return graph_specs(self.bundle.manifest)

    def make(
        self, *precisions: str, place: Place = H200, workspace: int | None = None, rebuild: bool = False
    ) -> tuple[str, ...]:
        """The ONNX files that were built by this call."""
        before = self.trt.Builder.built
        writer = PlanWriter(self.trt, self.bundle, place, workspace, self.lines.append)
        writer.write(precisions or ("fp16",), rebuild)
        built: tuple[str, ...] = self.trt.Builder.built
        return built[len(before) :]

    def asked(self, graph: str, precision: str = "fp16", place: Place = H200) -> dict[str, Any]:
        """What a plan was asked for."""
        asked: dict[str, Any] = json.loads(open_plan(self.bundle, graph, precision, place).data)
        return asked
