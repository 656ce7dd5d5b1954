"""One ONNX graph becomes one TensorRT plan."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import RuntimeUnavailable
from models.runtime.tensorrt_library import major_minor
from models.signature import GraphSpec

Say = Callable[[str], None]
_SHOWN_ERRORS = 3


@dataclass(frozen=True)
class Recipe:
    """What a plan is built from: an ONNX file with the inputs of `spec`.

    `rows` are the batch sizes that it is optimized for, one profile each. `workspace` is the most scratch
    memory in bytes that a layer may use, None = all that the GPU has.
    """

    onnx: Path
    spec: GraphSpec
    rows: tuple[int, ...]
    workspace: int | None = None


def build_plan(trt: Any, log: Any, recipe: Recipe, timings: bytes, say: Say) -> tuple[bytes, bytes]:
    """The plan of `recipe`, and the timing cache `timings` (empty for a new one) with what was timed for it.

    Works on PyTorch's current GPU. Raises RuntimeUnavailable when TensorRT cannot read or build the graph.
    """
    builder = trt.Builder(log)
    network = builder.create_network(creation_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(recipe.onnx)):
        raise RuntimeUnavailable(f"TensorRT {trt.__version__} cannot read {recipe.onnx}: {_errors(parser)}")
    config = builder.create_builder_config()
    # TF32 rounds to 10 bits of mantissa: enough to flip the sign of a latent, which is a bit.
    config.clear_flag(trt.BuilderFlag.TF32)
    if recipe.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace)
    # TensorRT keeps no hold of what it is given here: these two have to live until the end of the build.
    monitor, cache = _monitor(trt, say), _timing_cache(config, timings, say)
    config.progress_monitor = monitor
    _add_profiles(builder, config, recipe)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeUnavailable(f"TensorRT cannot build {recipe.onnx}: {_with_advice(log.reason())}")
    return bytes(plan), bytes(cache.serialize())


def creation_flags(trt: Any) -> int:
    """What makes a network strongly typed, that is of the precision of its graph: from 11 on each one is."""
    if major_minor(trt.__version__) >= (11, 0):
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _add_profiles(builder: Any, config: Any, recipe: Recipe) -> None:
    """One profile for each batch size, which is its minimum, optimum and maximum.

    Batches are padded to these sizes in any case and replayed as CUDA graphs of one size: a range would let
    TensorRT choose kernels for shapes that never come.
    """
    for count in recipe.rows:
        profile = builder.create_optimization_profile()
        for tensor in recipe.spec.inputs:
            shape = (count, *tensor.shape)
            profile.set_shape(tensor.name, shape, shape, shape)
        if config.add_optimization_profile(profile) < 0:
            raise RuntimeUnavailable(f"TensorRT refuses {recipe.onnx} for a batch of {count}")


def _timing_cache(config: Any, timings: bytes, say: Say) -> Any:
    """The cache that `config` uses: `timings`, or an empty one if they are of no use here."""
    cache = config.create_timing_cache(timings)
    if cache is None or not config.set_timing_cache(cache, False):
        say("the timing cache is of no use here and is made anew")
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _errors(parser: Any) -> str:
    errors = [parser.get_error(number) for number in range(parser.num_errors)]
    lines = [
        f"node {error.node_name() or '?'} ({error.node_operator() or '?'}): {error.desc().strip()}"
        for error in errors[:_SHOWN_ERRORS]
    ]
    more = len(errors) - len(lines)
    return "; ".join(lines) + (f"; and {more} more" if more else "")


def _with_advice(reason: str) -> str:
    short = re.search("memory|workspace", reason, re.IGNORECASE)
    return f"{reason}; stop what else uses the GPU, or raise --workspace-gib" if short else reason


def _monitor(trt: Any, say: Say) -> Any:
    """An IProgressMonitor of TensorRT that tells of the outermost phases."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                say(f"  {phase_name}, {num_steps} steps")

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()
