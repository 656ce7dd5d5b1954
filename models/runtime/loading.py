"""Which runtime a name means on this machine, and which one `auto` picks."""

from __future__ import annotations

import gc
import logging
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from models.bundle import Bundle
from models.errors import MaskBitError, RuntimeUnavailable, first_line
from models.runtime.base import Runtime
from models.runtime.devices import CPU, place_of
from models.runtime.number_range import keeps_in_range
from models.runtime.triton_models import DEADLINE_S, TIMEOUT_S

log = logging.getLogger(__name__)
TRITON = "triton"
TRITON_VARIABLE = "MASKBIT_TRITON_URL"
RUNTIMES = ("auto", "torch", "onnx", "tensorrt", TRITON, "noop")
# What `auto` tries, in this order. On a GPU it is expected from how they compute, and not measured.
_ON_CUDA = ("tensorrt", "torch", "onnx")
# Measured: level for one picture, onnx ahead for a batch (docs/runtimes.md).
_ON_CPU = ("onnx", "torch")
# What `auto` takes for a generator whose numbers do not fit into a precision.
_WIDER = {"fp16": ("bf16", "fp32"), "bf16": ("fp32",)}
_NO_MEMORY = re.compile(r"out of memory|bad.?alloc|allocate memory", re.IGNORECASE)
_EXTRAS = {"torch": "cpu", "onnxruntime": "onnx", "tensorrt": "tensorrt", "tritonclient": "triton"}


@dataclass(frozen=True)
class Wish:
    """How a runtime is to compute.

    `threads` on a CPU, 0 = the runtime's own choice; `triton_url` is grpc://host:8001 or http://host:8000,
    the two times are those of TritonRuntime.
    """

    device: str = "auto"
    precision: str = "auto"
    strict: bool = False
    threads: int = 0
    triton_url: str | None = None
    triton_timeout_s: float = TIMEOUT_S
    triton_deadline_s: float = DEADLINE_S


@dataclass(frozen=True)
class Choice:
    """A runtime, and one line for each that `auto` would have preferred: why it cannot be had."""

    runtime: Runtime
    passed_over: tuple[str, ...] = ()


def choose_runtime(bundle: Bundle, name: str = "auto", wish: Wish | None = None) -> Choice:
    """The runtime `name` of `bundle`, loaded and warm; `auto` is the fastest that gets so far.

    Raises RuntimeUnavailable when it cannot be had, in one line that names what to do.
    """
    return _choose(bundle, name, wish or Wish(), lambda runtime: runtime.warm_up())


def load_runtime(
    bundle: Bundle,
    name: str = "auto",
    *,
    device: str = "auto",
    precision: str = "auto",
    strict: bool = False,
    threads: int = 0,
) -> Runtime:
    """The runtime `name`, not warmed up, for a few calls; `auto` is the fastest that can be loaded.

    The address of a Triton is that of the environment variable MASKBIT_TRITON_URL.
    """
    wish = Wish(device, precision, strict, threads, os.environ.get(TRITON_VARIABLE))
    return _choose(bundle, name, wish, lambda runtime: None).runtime


def free_memory() -> None:
    """Give memory of a runtime that was let go of back to the accelerator."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _choose(bundle: Bundle, name: str, wish: Wish, prepare: Callable[[Runtime], None]) -> Choice:
    if name not in RUNTIMES:
        raise RuntimeUnavailable(f"runtime is {name!r}; allowed are {', '.join(RUNTIMES)}")
    if name != "auto":
        return Choice(_prepared(bundle, name, wish, prepare))
    passed_over: list[str] = []
    for candidate, place in _candidates(wish):
        try:
            runtime = _prepared(bundle, candidate, replace(wish, device=place), prepare)
        except MaskBitError as exc:
            passed_over.append(f"{candidate} on {place}: {exc}")
        else:
            return Choice(runtime, tuple(passed_over))
        free_memory()
    raise RuntimeUnavailable("no runtime can be had: " + "; ".join(passed_over))


def _candidates(wish: Wish) -> list[tuple[str, str]]:
    """Names in the order in which `auto` tries them, each with a device or the address of a server.

    A Triton whose address was given was meant; the CPU is left out where a GPU was asked for by name.
    """
    found = [(TRITON, wish.triton_url)] if wish.triton_url else []
    try:
        place = place_of(wish.device)
    except RuntimeUnavailable:
        if not found:
            raise
        return found
    if place != CPU:
        found += [(name, place) for name in _ON_CUDA]
    if place == CPU or wish.device == "auto":
        found += [(name, CPU) for name in _ON_CPU]
    return found


def _prepared(bundle: Bundle, name: str, wish: Wish, prepare: Callable[[Runtime], None]) -> Runtime:
    """A runtime that `prepare` was done with. Raises MaskBitError, whatever the cause."""
    try:
        runtime = _in_range(bundle, name, wish)
        prepare(runtime)
    except MaskBitError:
        raise
    except ModuleNotFoundError as exc:
        extra = _EXTRAS.get((exc.name or "").partition(".")[0], "worker")
        raise RuntimeUnavailable(
            f"the package {exc.name} is missing: pip install 'maskbit-serve[{extra}]'"
        ) from exc
    except Exception as exc:
        place = "the machine" if wish.device == "auto" else wish.device
        raise RuntimeUnavailable(_cause(exc, place)) from exc
    return runtime


def _in_range(bundle: Bundle, name: str, wish: Wish) -> Runtime:
    """A runtime in a precision that holds the generator's numbers, for `auto` the next wider one that does.

    Raises RuntimeUnavailable, which names those that are left, if there is none.
    """
    config = bundle.manifest.generator
    runtime = _LOADERS[name](bundle, wish)
    narrow = runtime.precision
    if config is None or narrow not in _WIDER or keeps_in_range(runtime, config):
        return runtime
    del runtime
    reasons = [f"this generator's numbers do not fit into {narrow}"]
    for wider in _WIDER[narrow] if wish.precision == "auto" else ():
        free_memory()
        try:
            runtime = _LOADERS[name](bundle, replace(wish, precision=wider))
        except RuntimeUnavailable as exc:
            reasons.append(f"{wider}: {exc}")
            continue
        if wider not in _WIDER or keeps_in_range(runtime, config):
            log.warning("%s computes in %s: %s", name, wider, reasons[0])
            return runtime
        del runtime
    reasons.append(f"use --precision {' or '.join(_WIDER[narrow])}")
    raise RuntimeUnavailable("; ".join(reasons))


def _cause(error: Exception, place: str) -> str:
    """What a library's error means; each has errors of its own where memory does not suffice."""
    reason = first_line(error)
    if isinstance(error, MemoryError) or _NO_MEMORY.search(reason):
        return (
            f"the memory of {place} does not suffice ({reason}); free some, or choose another --precision, "
            "--device or --runtime"
        )
    return f"it does not start: {reason}"


def _torch(bundle: Bundle, wish: Wish) -> Runtime:
    import torch

    from models.runtime.torch_runtime import TorchRuntime

    if wish.threads:
        torch.set_num_threads(wish.threads)
    return TorchRuntime(bundle, device=wish.device, precision=wish.precision, strict=wish.strict)


def _onnx(bundle: Bundle, wish: Wish) -> Runtime:
    from models.runtime.onnx_runtime import OnnxRuntime

    return OnnxRuntime(
        bundle, device=wish.device, precision=wish.precision, strict=wish.strict, threads=wish.threads
    )


def _tensorrt(bundle: Bundle, wish: Wish) -> Runtime:
    from models.runtime.tensorrt_runtime import TensorRTRuntime

    return TensorRTRuntime(bundle, device=wish.device, precision=wish.precision, strict=wish.strict)


def _triton(bundle: Bundle, wish: Wish) -> Runtime:
    from models.runtime.triton_runtime import TritonRuntime

    if wish.triton_url is None:
        raise RuntimeUnavailable(
            f"the runtime triton needs a server: set {TRITON_VARIABLE} to grpc://host:8001 or http://host:8000"
        )
    return TritonRuntime(
        bundle,
        url=wish.triton_url,
        precision=wish.precision,
        strict=wish.strict,
        timeout_s=wish.triton_timeout_s,
        deadline_s=wish.triton_deadline_s,
    )


def _noop(bundle: Bundle, wish: Wish) -> Runtime:
    from models.runtime.noop_runtime import NoopRuntime

    return NoopRuntime(bundle)


_LOADERS: dict[str, Callable[[Bundle, Wish], Runtime]] = {
    "torch": _torch,
    "onnx": _onnx,
    "tensorrt": _tensorrt,
    TRITON: _triton,
    "noop": _noop,
}
