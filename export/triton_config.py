"""The config.pbtxt of a Triton model: a protobuf message of the type inference.ModelConfig, as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.runtime.graph_runtime import plausible
from models.runtime.triton_models import GRAPH, Version, triton_type
from models.signature import GraphSpec, TensorSpec

ONNXRUNTIME, TENSORRT, PYTHON = BACKENDS = ("onnxruntime", "tensorrt", "python")
CPU, GPU = DEVICES = ("cpu", "gpu")
QUEUE_DELAY_US = 500
"""How long rows that fill no bucket wait for others; MaskBit's own clients send whole buckets."""
SERVED = 2  # versions: while workers change from one revision to the next they need both
WARMUP = "warmup"  # the folder that Triton reads samples from, in the folder of a model


class Word(str):
    """A value of an enumeration: text without quotation marks."""


Message = Mapping[str, Any]
"""Fields by name: text, numbers, Words, messages, or several of one of them."""


@dataclass(frozen=True)
class Placement:
    """How Triton runs a graph: on `device`, cpu or gpu, with `instances`, in batches of `rows`, ascending.

    `profiles` are the numbers that a TensorRT plan has for these batches, in the same order.
    """

    backend: str
    device: str
    instances: int
    rows: tuple[int, ...]
    profiles: tuple[int, ...] = ()


def config_text(name: str, spec: GraphSpec, placement: Placement, versions: Mapping[int, Version]) -> str:
    """Text of the config.pbtxt of the model `name`, which holds `versions` of the graph `spec`."""
    config: dict[str, Any] = {
        "name": name,
        "backend": placement.backend,
        "max_batch_size": placement.rows[-1],
        "version_policy": {"latest": {"num_versions": SERVED}},
        "input": [_tensor(one) for one in spec.inputs],
        "output": [_tensor(one) for one in spec.outputs],
        "instance_group": [_instances(placement)],
        "dynamic_batching": {
            "preferred_batch_size": placement.rows,
            "max_queue_delay_microseconds": QUEUE_DELAY_US,
        },
        "model_warmup": [_warmup(spec, rows) for rows in _warm_rows(placement)],
        "parameters": [
            _entry(key, {"string_value": text}) for key, text in _parameters(spec, versions).items()
        ],
    }
    if (placement.backend, placement.device) == (ONNXRUNTIME, GPU):
        # TF32's mantissa flips bits of tokens; the exhaustive search picks by time, not alike everywhere.
        exact = {"name": "cuda", "parameters": [_entry("use_tf32", "0")]}
        config["optimization"] = {"execution_accelerators": {"gpu_execution_accelerator": [exact]}}
        config["parameters"] += [_entry("cudnn_conv_algo_search", {"string_value": "1"})]
    return text_of(config)


def warmup_files(spec: GraphSpec) -> dict[str, bytes]:
    """One row of each input that must not be zero, by the name of its file in the folder WARMUP."""
    values = plausible(spec, 1)
    return {one.name: values[one.name].tobytes() for one in spec.inputs if values[one.name].any()}


def text_of(message: Message, depth: int = 0) -> str:
    """Protobuf's text format of a message."""
    pad, lines = "  " * depth, []
    for key, value in message.items():
        several = isinstance(value, list | tuple)
        parts = value if several else [value]
        if parts and isinstance(parts[0], Mapping):
            lines += [f"{pad}{key} {{\n{text_of(part, depth + 1)}{pad}}}\n" for part in parts]
        elif several:
            lines.append(f"{pad}{key}: [{', '.join(map(_scalar, parts))}]\n")
        else:
            lines.append(f"{pad}{key}: {_scalar(value)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    return str(value) if isinstance(value, Word) else json.dumps(value, ensure_ascii=False)


def _tensor(spec: TensorSpec) -> Message:
    tensor: dict[str, Any] = {"name": spec.name, "data_type": Word(f"TYPE_{triton_type(spec)}")}
    # Triton wants a dimension beside the batch; the graph has none for one number a row.
    return tensor | ({"dims": spec.shape} if spec.shape else {"dims": [1], "reshape": {"shape": []}})


def _instances(placement: Placement) -> Message:
    kind = Word("KIND_GPU" if placement.device == GPU else "KIND_CPU")
    group: dict[str, Any] = {"count": placement.instances, "kind": kind}
    return group | ({"profile": [str(number) for number in placement.profiles]} if placement.profiles else {})


def _warm_rows(placement: Placement) -> tuple[int, ...]:
    """A GPU prepares its kernels for each shape; a CPU has only its thread pool to start."""
    return placement.rows if placement.device == GPU else placement.rows[:1]


def _warmup(spec: GraphSpec, rows: int) -> Message:
    files = warmup_files(spec)
    inputs = []
    for one in spec.inputs:
        data: Message = {"input_data_file": one.name} if one.name in files else {"zero_data": True}
        tensor = {"data_type": Word(f"TYPE_{triton_type(one)}"), "dims": one.shape or [1], **data}
        inputs.append(_entry(one.name, tensor))
    return {"name": f"rows_{rows}", "batch_size": rows, "inputs": inputs}


def _parameters(spec: GraphSpec, versions: Mapping[int, Version]) -> dict[str, str]:
    """What a client knows the model by."""
    known = {key: text for number, version in versions.items() for key, text in version.parameters(number)}
    return {GRAPH: spec.name, **known}


def _entry(key: str, value: Any) -> Message:
    """One entry of a map."""
    return {"key": key, "value": value}
