"""Finding the guilty in a batch that failed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from models.errors import RuntimeLost

T = TypeVar("T")
R = TypeVar("R")

# How PyTorch, onnxruntime and TensorRT name an error of CUDA itself.
_BY_CUDA = re.compile(r"CUDA (error|failure \d)|STATUS_EXECUTION_FAILED|Cuda (Runtime|Driver) \(")


def isolate(
    action: Callable[[Sequence[T]], R],
    items: Sequence[T],
    wanted: Callable[[T], bool],
    give_up: Callable[[T, Exception], None],
) -> list[R]:
    """What `action` returns for `items`, in one call, or in several where it raised.

    A batch that raises is halved until each item that cannot be done is alone; it is then given up, at a
    price of two calls for each halving. What is no longer `wanted`, since a companion was given up, is left
    out. An error that ends the process goes up.
    """
    items = [item for item in items if wanted(item)]
    if not items:
        return []
    try:
        return [action(items)]
    except Exception as exc:
        if is_fatal(exc):
            raise
        if len(items) == 1:
            give_up(items[0], exc)
            return []
    middle = len(items) // 2
    halves = (items[:middle], items[middle:])
    return [result for half in halves for result in isolate(action, half, wanted, give_up)]


def is_fatal(error: BaseException) -> bool:
    """Whether the process cannot go on: an error of CUDA, unless memory lacks, leaves its context unusable.

    Without its server no item can be done; the queue keeps those for a worker that finds one.
    """
    if isinstance(error, (RuntimeLost, MemoryError)):
        return True
    if "out of memory" in str(error):
        return False
    return bool(_BY_CUDA.search(str(error))) or type(error).__name__ == "AcceleratorError"
