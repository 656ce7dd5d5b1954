"""One stream of a GPU with the memory that its work uses, by PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class CudaLane:
    """A stream of its own on `device`, `cuda:<number>`, whose work is done in the order in which it came."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    @property
    def handle(self) -> int:
        """The stream as CUDA's C interface knows it."""
        return int(self._stream.cuda_stream)

    @contextmanager
    def active(self) -> Iterator[None]:
        """What PyTorch does inside of the block is done on this stream."""
        with torch.cuda.stream(self._stream):
            yield

    def wait(self) -> None:
        """Return when all that came is done."""
        self._stream.synchronize()

    def memory(self, size: int) -> Tensor:
        """`size` bytes of the GPU."""
        return torch.empty(size, dtype=torch.uint8, device=self._device)

    def pinned(self, size: int) -> Tensor:
        """`size` bytes of the host, from and to which copies need not be waited for."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """A function that does `work` again, with the same addresses, by one launch; it was done once before.

        `work` only gives work to this stream; it is called twice.
        """
        # The first time it allocates and loads kernels, which a capture forbids.
        with self.active():
            work()
        self.wait()
        graph = torch.cuda.CUDAGraph()
        # Other threads of a worker may allocate meanwhile, which does not concern this capture.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay

    def reserved_bytes(self) -> int:
        """Memory of the GPU that PyTorch holds for this process."""
        return torch.cuda.memory_reserved(self._device)
