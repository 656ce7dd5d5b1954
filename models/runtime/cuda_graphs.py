"""A network as CUDA graphs, one for each batch size: a replay costs one launch instead of hundreds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WARM_UPS = 3  # calls that let libraries choose kernels and allocate workspaces before a capture


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


class CudaGraphs:
    """`network` of tensors whose shapes are given by their batch size; must run in inference mode.

    Each batch size is captured when it is met first. The graphs share their memory, for only one of them
    runs at a time; so an output is copied before another graph may write to its place.
    """

    def __init__(self, network: Callable[..., Tensor], device: torch.device) -> None:
        self._network = network
        self._device = device
        self._captured: dict[int, _Captured] = {}
        self._pool: Any = None
        # Graphs that share memory have to be captured on one stream.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The network's output for `inputs`."""
        captured = self._captured.get(len(inputs[0])) or self._capture(inputs)
        for mine, given in zip(captured.inputs, inputs, strict=True):
            mine.copy_(given)
        captured.graph.replay()
        return captured.output.clone()

    def _capture(self, inputs: tuple[Tensor, ...]) -> _Captured:
        with torch.cuda.device(self._device):
            mine = tuple(x.clone() for x in inputs)
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    self._network(*mine)
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads of a worker may allocate meanwhile, which does not concern this capture.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                output = self._network(*mine)
        self._pool = graph.pool()
        self._captured[len(mine[0])] = _Captured(graph, mine, output)
        return self._captured[len(mine[0])]
