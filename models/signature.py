"""Tensor names, dtypes and shapes of the exported graphs: what export/ writes and compiled runtimes feed.

Four graphs: `encode` and `decode` of the tokenizer, `step` and `step_guided` of the generator. The last two
are one sampling step each, from tokens to next tokens; `step_guided` runs the network twice for every row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from models.bundle import Manifest
from models.runtime.base import StepBatch

BATCH = "batch"
"""The only dynamic dimension; it comes first everywhere."""
ENCODE, DECODE, STEP, STEP_GUIDED = "encode", "decode", "step", "step_guided"
TOKENIZER_GRAPHS, GENERATOR_GRAPHS = (ENCODE, DECODE), (STEP, STEP_GUIDED)
_GUIDANCE = "guidance_scale"


@dataclass(frozen=True)
class TensorSpec:
    """`dtype` is NumPy's name; `shape` is that of one row, without the batch."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class GraphSpec:
    """Inputs and outputs in the order in which a graph lists them."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def graph_specs(manifest: Manifest) -> dict[str, GraphSpec]:
    """The graphs that a bundle can be exported to, by name: those of the generator only if it has one."""
    images = TensorSpec("images", "uint8", (manifest.image_size, manifest.image_size, 3))
    indices = TensorSpec("indices", "int64", (manifest.grid, manifest.grid))
    specs = [GraphSpec(ENCODE, (images,), (indices,)), GraphSpec(DECODE, (indices,), (images,))]
    generator = manifest.generator
    if generator is not None:
        groups = (generator.num_tokens, generator.codebook_splits)
        inputs = tuple(_step_input(field.name, groups) for field in fields(StepBatch))
        outputs = (TensorSpec("next_tokens", "int64", groups), TensorSpec("drawn", "int64", groups))
        plain = tuple(one for one in inputs if one.name != _GUIDANCE)
        specs += [GraphSpec(STEP, plain, outputs), GraphSpec(STEP_GUIDED, inputs, outputs)]
    return {spec.name: spec for spec in specs}


def _step_input(name: str, groups: tuple[int, int]) -> TensorSpec:
    """An input of a step, as `runtime.base.StepBatch` describes it."""
    dtype = "int64" if name in ("tokens", "labels", "mask_count") else "float32"
    per_group = name == "tokens" or name.endswith("_uniforms")
    return TensorSpec(name, dtype, groups if per_group else ())
