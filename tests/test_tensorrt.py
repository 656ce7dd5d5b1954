"""What can be known of TensorRT without it: that the names which are used exist, and that the graphs fit."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest

from export import tensorrt_build
from models.bundle import Bundle
from models.exported import graph_file
from models.runtime import tensorrt_library, tensorrt_runtime
from models.signature import graph_specs
from tests import tensorrt_stand_in

GOLDEN = Path(__file__).parent / "golden"
OURS = (tensorrt_library, tensorrt_runtime, tensorrt_build)
# What our code calls its TensorRT objects, with or without `self._` before it.
OBJECTS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "library": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
}
OWN_METHODS = {"__init__", "reason"}  # of our subclasses, beside those that TensorRT calls


# The names of the Python API


def used_names() -> set[tuple[str, str]]:
    """(class, member) of TensorRT that our code uses; the member is "" for the class itself."""
    used = set()
    for module in OURS:
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
            if isinstance(node, ast.Attribute):
                used |= set(_meaning(ast.unparse(node).removeprefix("self.").removeprefix("_").split(".")))
            elif isinstance(node, ast.ClassDef):
                methods = {one.name for one in node.body if isinstance(one, ast.FunctionDef)} - OWN_METHODS
                bases = [name for base in node.bases if (name := ast.unparse(base)).startswith("trt.")]
                used |= {(base.removeprefix("trt."), method) for base in bases for method in methods}
    return used


def _meaning(chain: list[str]) -> Iterator[tuple[str, str]]:
    match chain:
        case ["trt", name, *rest] if not name.startswith("__"):
            yield name, "" if rest in ([], ["__init__"]) else rest[0]
        case [variable, member] if variable in OBJECTS:
            yield OBJECTS[variable], member


def api() -> dict[str, dict[str, list[str]]]:
    versions: dict[str, dict[str, list[str]]] = json.loads((GOLDEN / "tensorrt_api.json").read_text())[
        "versions"
    ]
    return versions


def test_the_walk_finds_names_of_every_kind() -> None:
    assert used_names() >= {
        ("Builder", ""),
        ("BuilderFlag", "TF32"),
        ("IProgressMonitor", "step_complete"),
        ("ITimingCache", "serialize"),
        ("ParserError", "node_name"),
        ("ICudaEngine", "create_execution_context"),
        ("IExecutionContext", "execute_async_v3"),
        ("ExecutionContextAllocationStrategy", "USER_MANAGED"),
    }


@pytest.mark.parametrize("version", ["10.15.1.29", "11.4.0.106"])
def test_every_name_that_is_used_exists_in_the_oldest_and_the_newest_tensorrt(version: str) -> None:
    offered = api()[version]
    assert tensorrt_library.major_minor(version) >= tensorrt_library.OLDEST
    unknown = {
        (name, member)
        for name, member in used_names()
        if name not in offered or (member and member not in offered[name])
    }
    assert unknown == set()


def test_every_name_that_is_used_is_in_the_binary_of_the_bindings() -> None:
    spec = find_spec("tensorrt_bindings")
    if spec is None or spec.origin is None:
        pytest.skip("the package tensorrt-cu13-bindings is not installed")
    binary = Path(spec.origin).with_name("tensorrt.so").read_bytes()
    offered = {word.decode() for word in re.findall(rb"[A-Za-z_][A-Za-z0-9_]+", binary)}
    assert {word for pair in used_names() for word in pair if word} - offered == set()


def test_the_stand_in_offers_no_method_that_tensorrt_does_not_have() -> None:
    offered = api()["11.4.0.106"]
    for name, members in offered.items():
        mine = vars(tensorrt_stand_in).get(name, object)
        own = {key for key, value in vars(mine).items() if callable(value) and not key.startswith("_")}
        assert own <= {*members}, name


# The operators of the graphs

TYPES = {
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.BOOL: "BOOL",
    onnx.TensorProto.DOUBLE: "FP64",
}
EXPORTED = pytest.mark.parametrize("bundle_name", ["exported_tiny", "exported_fruit"])


class Graph:
    """An exported graph and the types of its values."""

    def __init__(self, path: Path) -> None:
        self.model = onnx.load(path, load_external_data=False)
        graph = self.model.graph
        self.nodes, self.inputs = list(graph.node), {value.name for value in graph.input}
        self.outputs = {value.name for value in graph.output}
        self.types = {one.name: one.type.tensor_type.elem_type for one in graph.value_info}
        self.types |= {one.name: one.type.tensor_type.elem_type for one in (*graph.input, *graph.output)}
        self.types |= {one.name: one.data_type for one in graph.initializer}
        made = {node.output[0] for node in self.nodes if node.op_type == "Constant"}
        self.constants = {one.name for one in graph.initializer} | made

    def data_types(self, node: onnx.NodeProto) -> Iterator[str]:
        """Types of what a node computes with, not of the shapes, axes and indices that say how."""
        schema = onnx.defs.get_schema(node.op_type, self.model.opset_import[0].version)
        data = {schema.outputs[0].type_str, schema.inputs[0].type_str if schema.inputs else ""}
        for number, name in enumerate(node.input):
            formal = schema.inputs[min(number, len(schema.inputs) - 1)]
            if name and formal.type_str in data:
                yield TYPES[self.types[name]]
        if node.op_type in ("Cast", "Constant", "ConstantOfShape"):
            yield TYPES[self.types[node.output[0]]]


def graphs(bundle: Bundle) -> list[tuple[str, Graph]]:
    paths = sorted((bundle.path / "onnx").glob("*.onnx"))
    assert {graph_file(graph, "fp16") for graph in graph_specs(bundle.manifest)} <= {
        one.name for one in paths
    }
    return [(path.name, Graph(path)) for path in paths]


def operators() -> dict[str, Any]:
    listed: dict[str, Any] = json.loads((GOLDEN / "tensorrt_operators.json").read_text())
    return listed


@EXPORTED
def test_every_operator_and_type_of_the_graphs_is_one_that_tensorrt_documents(
    bundle_name: str, request: pytest.FixtureRequest
) -> None:
    listed, wrong = operators(), set()
    for name, graph in graphs(request.getfixturevalue(bundle_name)):
        first, last = listed["opsets"]
        (opset,) = graph.model.opset_import
        assert opset.domain == ""
        assert first <= opset.version <= last
        assert not graph.model.functions
        for node in graph.nodes:
            allowed = listed["operators"].get(node.op_type, [])
            wrong |= {(name, node.op_type, one) for one in graph.data_types(node) if one not in allowed}
    assert wrong == set()


@EXPORTED
def test_bytes_are_cast_at_the_borders_of_a_graph_where_alone_tensorrt_takes_them(
    bundle_name: str, request: pytest.FixtureRequest
) -> None:
    for name, graph in graphs(request.getfixturevalue(bundle_name)):
        for node in graph.nodes:
            for value in (*node.input, *node.output):
                if value and TYPES[graph.types[value]] == "UINT8":
                    assert node.op_type == "Cast", name
                    assert value in graph.inputs | graph.outputs, name


@EXPORTED
def test_the_graphs_keep_to_the_restrictions_that_tensorrt_documents(
    bundle_name: str, request: pytest.FixtureRequest
) -> None:
    for name, graph in graphs(request.getfixturevalue(bundle_name)):
        for node in graph.nodes:
            settings = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
            if node.op_type.startswith("Reduce") or node.op_type in (
                "CumSum",
                "Squeeze",
                "Unsqueeze",
                "TopK",
            ):
                assert set(node.input[1:]) <= graph.constants | {""}, (name, node.name)
            if node.op_type == "TopK":
                assert settings.get("sorted", 1) == 1, name
                assert _constant(graph, node.input[1]) < 3840, name
            if node.op_type == "LayerNormalization":
                assert len(node.output) == 1, name


@EXPORTED
def test_no_graph_holds_a_loop_or_a_shape_that_depends_on_data_which_a_cuda_graph_cannot_replay(
    bundle_name: str, request: pytest.FixtureRequest
) -> None:
    for name, graph in graphs(request.getfixturevalue(bundle_name)):
        assert not {"If", "Loop", "Scan", "NonZero", "NonMaxSuppression"} & {
            node.op_type for node in graph.nodes
        }, name


@EXPORTED
def test_a_graph_has_one_cumulative_sum_at_most(bundle_name: str, request: pytest.FixtureRequest) -> None:
    # TensorRT from 10.8 on takes several for one: https://github.com/onnx/onnx-tensorrt/issues/1034
    for name, graph in graphs(request.getfixturevalue(bundle_name)):
        assert sum(node.op_type == "CumSum" for node in graph.nodes) <= 1, name


def _constant(graph: Graph, name: str) -> int:
    (value,) = (one for one in graph.model.graph.initializer if one.name == name)
    return int(onnx.numpy_helper.to_array(value).item())
