"""Which runtime a name means on this machine."""

from __future__ import annotations

from models.bundle import Bundle
from models.errors import RuntimeUnavailable
from models.runtime.base import Runtime

RUNTIMES = ("auto", "torch", "noop")


def load_runtime(
    bundle: Bundle, name: str = "auto", *, device: str = "auto", precision: str = "auto", strict: bool = False
) -> Runtime:
    """The loaded runtime `name` of `bundle`; `auto` is the fastest that this machine has."""
    if name == "noop":
        from models.runtime.noop_runtime import NoopRuntime

        return NoopRuntime(bundle)
    if name in ("auto", "torch"):
        from models.runtime.torch_runtime import TorchRuntime

        return TorchRuntime(bundle, device=device, precision=precision, strict=strict)
    raise RuntimeUnavailable(f"runtime is {name!r}; allowed are {', '.join(RUNTIMES)}")
