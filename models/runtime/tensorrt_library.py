"""The installed TensorRT and the GPU that it would use."""

from __future__ import annotations

import importlib
import logging
from typing import Any

from models.errors import RuntimeUnavailable
from models.runtime.devices import CPU, place_of
from models.tensorrt_plan import Place

_log = logging.getLogger(__name__)
OLDEST = (10, 15)


def tensorrt_module() -> Any:
    """The package `tensorrt`. Raises RuntimeUnavailable where it is missing, broken or too old."""
    try:
        trt = importlib.import_module("tensorrt")
    except ModuleNotFoundError as exc:
        raise RuntimeUnavailable(
            f"the package {exc.name} is missing: pip install 'maskbit-serve[tensorrt]'"
        ) from exc
    except (ImportError, OSError) as exc:
        raise RuntimeUnavailable(f"the package tensorrt does not load: {exc}") from exc
    if major_minor(trt.__version__) < OLDEST:
        raise RuntimeUnavailable(
            f"TensorRT is {trt.__version__}; at least {'.'.join(map(str, OLDEST))} is needed: "
            "pip install --upgrade 'maskbit-serve[tensorrt]'"
        )
    return trt


def major_minor(version: str) -> tuple[int, int]:
    """The first two numbers of a version."""
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


def gpu_for(device: str) -> str:
    """`cuda:<number>` for a word as `--device` takes it. Raises RuntimeUnavailable without such a GPU."""
    import torch

    place = place_of(device)
    if place == CPU:
        raise RuntimeUnavailable(f"TensorRT needs an NVIDIA GPU; the device {device!r} is {CPU} here")
    if not torch.cuda.is_available():
        raise RuntimeUnavailable(
            f"TensorRT needs PyTorch with CUDA for its memory; {torch.__version__} sees no GPU"
        )
    return place


def place_at(trt: Any, gpu: str) -> Place:
    """What plans for `gpu` (`cuda:<number>`) are built for."""
    import torch

    return Place(torch.cuda.get_device_name(gpu), trt.__version__)


def make_log(trt: Any) -> Any:
    """An ILogger of TensorRT that writes to Python's log; `reason()` is its last error in one line."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = ""

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.last_error = msg.strip().partition("\n")[0]
                _log.error("%s", msg)
            elif severity == trt.ILogger.WARNING:
                _log.warning("%s", msg)

        def reason(self) -> str:
            return self.last_error or "it gave no reason"

    return Log()
