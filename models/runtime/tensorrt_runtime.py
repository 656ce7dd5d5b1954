"""The TensorRT plans of a bundle on an NVIDIA GPU, replayed as CUDA graphs.

Memory and streams are PyTorch's, which a GPU worker has in any case: one allocator then serves all, and its
streams, pinned buffers and graph capture are as well kept as those of any other CUDA package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from models.bundle import Bundle
from models.errors import RuntimeUnavailable
from models.runtime.base import CUDA_BUCKETS, STRICT_BUCKET
from models.runtime.cuda_lane import CudaLane
from models.runtime.graph_runtime import Array, GraphRuntime
from models.runtime.tensorrt_library import gpu_for, make_log, place_at, tensorrt_module
from models.signature import GraphSpec, TensorSpec
from models.tensorrt_plan import Plan, choose_precision, open_plan

ALIGNMENT = 256  # bytes, of every tensor's place and of the scratch memory, as TensorRT asks for


class TensorRTRuntime(GraphRuntime):
    """Runtime of a bundle's plans, as `maskbit export tensorrt` builds them for this GPU.

    `precision`: one that was built; `auto` is the first of `tensorrt_plan.PREFERRED` that was. With `strict`
    every call has one and the same number of rows. All graphs share one stream and one scratch memory, for
    only one of them runs at a time.

    Raises RuntimeUnavailable, with what to do, without TensorRT, GPU or fitting plans, or if TensorRT fails.
    """

    name = "tensorrt"

    def __init__(
        self, bundle: Bundle, *, device: str = "auto", precision: str = "auto", strict: bool = False
    ) -> None:
        super().__init__(bundle.manifest, (STRICT_BUCKET,) if strict else CUDA_BUCKETS)
        trt = tensorrt_module()
        self.device_name = gpu_for(device)
        place = place_at(trt, self.device_name)
        self.precision = choose_precision(bundle, precision, self.specs, place)
        self._lane = CudaLane(self.device_name)
        log = make_log(trt)
        self._library = trt.Runtime(log)
        with self._lane.active():
            self._plans = {
                graph: LoadedPlan(
                    trt, log, self._library, spec, open_plan(bundle, graph, self.precision, place)
                )
                for graph, spec in self.specs.items()
            }
            self.sizes = {
                graph: tuple(rows for rows in self.buckets if rows <= plan.rows[-1]) or self.buckets
                for graph, plan in self._plans.items()
            }
            self._scratch = self._lane.memory(max(plan.scratch_bytes for plan in self._plans.values()))
        self._replays: dict[tuple[str, int], Replay] = {}

    def _run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self._replay(graph, len(next(iter(inputs.values()))))(inputs)

    def _replay(self, graph: str, rows: int) -> Replay:
        replay = self._replays.get((graph, rows))
        if replay is None:
            replay = Replay(self._plans[graph], rows, self._scratch, self._lane)
            self._replays[graph, rows] = replay
        return replay

    def memory_bytes(self) -> int:
        """CUDA memory that PyTorch has reserved, and the plans' weights, which TensorRT holds itself."""
        return self._lane.reserved_bytes() + sum(plan.weight_bytes for plan in self._plans.values())


class LoadedPlan:
    """A plan on the GPU. `rows` are the batch sizes of its profiles, ascending; sizes in bytes."""

    def __init__(self, trt: Any, log: Any, library: Any, spec: GraphSpec, plan: Plan) -> None:
        self.spec, self.rows, self._command = spec, plan.record.rows, plan.command
        self._trt, self._log = trt, log
        engine = library.deserialize_cuda_engine(plan.data)
        self.check(engine is not None, "load")
        self._engine = engine
        names = {engine.get_tensor_name(number) for number in range(engine.num_io_tensors)}
        wanted = {tensor.name for tensor in (*spec.inputs, *spec.outputs)}
        if names != wanted:
            raise self._outdated(f"tensors {', '.join(sorted(names))}, not {', '.join(sorted(wanted))}")
        self.scratch_bytes = max(int(engine.device_memory_size_v2), ALIGNMENT)
        self.weight_bytes = int(engine.get_engine_stat(trt.EngineStat.TOTAL_WEIGHTS_SIZE))

    def check(self, done: object, what: str) -> None:
        """Raise RuntimeUnavailable with TensorRT's last error unless it has `done` what was asked."""
        if not done:
            raise RuntimeUnavailable(
                f"TensorRT cannot {what} the plan of {self.spec.name}: {self._log.reason()}"
            )

    def context(self, rows: int, scratch: Tensor, lane: CudaLane) -> Any:
        """An execution context for batches of `rows` that works in `scratch`."""
        if rows not in self.rows:
            raise self._outdated(f"profiles for {', '.join(map(str, self.rows))} rows, not for {rows}")
        context = self._engine.create_execution_context(
            self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        self.check(context is not None, "prepare")
        chosen = context.set_optimization_profile_async(self.rows.index(rows), lane.handle)
        self.check(chosen, "prepare")
        lane.wait()
        context.set_device_memory(scratch.data_ptr(), scratch.numel())
        for tensor in self.spec.inputs:
            self.check(context.set_input_shape(tensor.name, (rows, *tensor.shape)), "prepare")
        return context

    def _outdated(self, found: str) -> RuntimeUnavailable:
        return RuntimeUnavailable(
            f"the TensorRT plan of {self.spec.name} has {found}; run: {self._command} --rebuild"
        )


class Replay:
    """A graph at one batch size: its context and buffers, captured as a CUDA graph at the first call."""

    def __init__(self, plan: LoadedPlan, rows: int, scratch: Tensor, lane: CudaLane) -> None:
        self._plan, self._lane = plan, lane
        with lane.active():
            self._inputs = Buffers(plan.spec.inputs, rows, lane)
            self._outputs = Buffers(plan.spec.outputs, rows, lane)
            self._context = plan.context(rows, scratch, lane)
        for name, address in (*self._inputs.addresses(), *self._outputs.addresses()):
            plan.check(self._context.set_tensor_address(name, address), "prepare")
        self._again: Callable[[], None] | None = None

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs for `inputs`, all by name; the host waits once, for the outputs."""
        for name, view in self._inputs.views.items():
            np.copyto(view, inputs[name])
        with self._lane.active():
            self._inputs.device.copy_(self._inputs.host, non_blocking=True)
            if self._again is None:
                self._again = self._lane.capture(self._enqueue)
            self._again()
            self._outputs.host.copy_(self._outputs.device, non_blocking=True)
        self._lane.wait()
        return {name: view.copy() for name, view in self._outputs.views.items()}

    def _enqueue(self) -> None:
        self._plan.check(self._context.execute_async_v3(self._lane.handle), "run")


class Buffers:
    """Tensors of one direction in one piece of pinned host memory and one of the GPU: one copy moves all.

    `views` are NumPy arrays of the host's tensors by name.
    """

    def __init__(self, tensors: tuple[TensorSpec, ...], rows: int, lane: CudaLane) -> None:
        self._offsets, size = layout(tensors, rows)
        self.host, self.device = lane.pinned(size), lane.memory(size)
        memory = self.host.numpy().data
        self.views: dict[str, Array] = {
            one.name: np.ndarray((rows, *one.shape), one.dtype, memory, self._offsets[one.name])
            for one in tensors
        }

    def addresses(self) -> list[tuple[str, int]]:
        """Names of the tensors and where they are on the GPU."""
        return [(name, self.device.data_ptr() + offset) for name, offset in self._offsets.items()]


def layout(tensors: tuple[TensorSpec, ...], rows: int) -> tuple[dict[str, int], int]:
    """Offsets in bytes of `tensors` for a batch of `rows`, by name, and the size of all."""
    offsets, size = {}, 0
    for tensor in tensors:
        offsets[tensor.name] = size
        count = rows * int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize
        size += -(-count // ALIGNMENT) * ALIGNMENT
    return offsets, size
