"""What all runtimes of exported graphs share: batches in buckets, and guided rows apart from the others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import Manifest
from models.errors import RuntimeUnavailable
from models.runtime.base import Integers, Pixels, StepBatch, StepResult, bucket_for
from models.signature import DECODE, ENCODE, STEP, STEP_GUIDED, GraphSpec, graph_specs

Array = NDArray[Any]


class GraphRuntime(ABC):
    """A Runtime whose networks are the graphs of `signature.py`; a subclass runs one graph on one batch."""

    name: str
    precision: str
    device_name: str

    def __init__(self, manifest: Manifest, buckets: tuple[int, ...]) -> None:
        self.buckets = buckets
        self.specs = graph_specs(manifest)
        self.sizes = dict.fromkeys(self.specs, buckets)
        """Row counts of the calls of each graph, ascending; a subclass may have others than `buckets`."""

    @abstractmethod
    def _run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of `graph` by name for inputs of one of its sizes."""

    def encode(self, images: Pixels) -> Integers:
        """Token indices i64 (B, h, w) of pictures u8 (B, H, W, 3)."""
        return self._in_buckets(ENCODE, {"images": images})["indices"]

    def decode(self, indices: Integers) -> Pixels:
        """Pictures u8 (B, H, W, 3) of token indices i64 (B, h, w)."""
        return self._in_buckets(DECODE, {"indices": indices})["images"]

    def step(self, batch: StepBatch) -> StepResult:
        """One sampling step for all rows of `batch`; rows without guidance cost no unconditional pass."""
        if STEP not in self.specs:
            raise RuntimeUnavailable("this bundle has no generator: it tokenizes and detokenizes only")
        guided = batch.guidance_scale != 0
        tokens, drawn = np.empty_like(batch.tokens), np.empty_like(batch.tokens)
        for graph, rows in ((STEP_GUIDED, np.flatnonzero(guided)), (STEP, np.flatnonzero(~guided))):
            if len(rows):
                part = batch.take(rows)
                inputs = {one.name: getattr(part, one.name) for one in self.specs[graph].inputs}
                outputs = self._in_buckets(graph, inputs)
                tokens[rows], drawn[rows] = outputs["next_tokens"], outputs["drawn"]
        return StepResult(tokens, drawn)

    def memory_bytes(self) -> int:
        """Accelerator memory that the graphs hold; 0 where that is unknown or there is none."""
        return 0

    def warm_up(self) -> None:
        """Run every graph in every size once, so that the first request meets no slow start."""
        for graph in self.specs:
            self._warm(graph, self.sizes[graph])

    def _warm(self, graph: str, sizes: tuple[int, ...]) -> None:
        """Run `graph` once in each of `sizes`."""
        for rows in sizes:
            self._run(graph, plausible(self.specs[graph], rows))

    def _in_buckets(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """`graph` over all rows, in calls padded to its sizes by repeating the last row."""
        rows, largest = len(next(iter(inputs.values()))), self.sizes[graph][-1]
        parts = []
        for start in range(0, rows, largest):
            chunk = {name: x[start : start + largest] for name, x in inputs.items()}
            count = min(largest, rows - start)
            size = bucket_for(count, self.sizes[graph])
            outputs = self._run(graph, {name: _padded(x, size) for name, x in chunk.items()})
            parts.append({name: x[:count] for name, x in outputs.items()})
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _padded(rows: Array, size: int) -> Array:
    """`rows`, contiguous, with the last one repeated until they number `size`."""
    missing = size - len(rows)
    return np.ascontiguousarray(np.concatenate([rows, rows[-1:].repeat(missing, 0)]) if missing else rows)


def plausible(spec: GraphSpec, rows: int) -> dict[str, Array]:
    """Inputs in range for a graph: a first step of the class 0, a black picture."""

    def value(name: str) -> float:
        return (
            1.0 if name in ("temperature", "guidance_scale") else 0.5 if name.endswith("_uniforms") else 0.0
        )

    return {one.name: np.full((rows, *one.shape), value(one.name), dtype=one.dtype) for one in spec.inputs}
