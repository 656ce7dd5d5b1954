"""The CPU, or one of the GPUs that the NVIDIA driver shows to this process; asks neither torch nor CUDA."""

from __future__ import annotations

import ctypes
import re

from models.errors import RuntimeUnavailable

CPU, CUDA = "cpu", "cuda"
_DRIVER = "libcuda.so.1"


def place_of(device: str) -> str:
    """`cpu` or `cuda:<number>` for `cpu`, `cuda`, `cuda:<number>`, or `auto`: the first GPU if there is one.

    Raises RuntimeUnavailable for another word and for a GPU that is not there.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise RuntimeUnavailable(f"device is {device!r}; allowed are auto, cpu, cuda and cuda:<number>")
    if device == CPU:
        return CPU
    gpus, number = cuda_gpus(), int(device.partition(":")[2] or 0)
    if number < gpus:
        return f"cuda:{number}"
    if device == "auto":
        return CPU
    raise RuntimeUnavailable(f"device {device!r}: the NVIDIA driver shows {gpus} GPUs; use auto or cpu")


def cuda_gpus() -> int:
    """How many GPUs there are; 0 without a driver. CUDA_VISIBLE_DEVICES counts."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return 0
    count = ctypes.c_int()
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value
