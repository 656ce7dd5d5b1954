"""A worker whose network takes exactly as long as it is told: the no-op runtime, slowed down.

`python -m service.bench.paced`, with MASKBIT_… settings and, in BENCH_PACE, seconds of a call and of each
row in it, such as `0.02 0.001`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

PACE = "BENCH_PACE"


def pace(call_s: float, row_s: float) -> None:
    """Let steps of the no-op runtime in this process take `call_s` and, for each network row, `row_s`."""
    from models.runtime.base import Integers, Pixels, StepBatch, StepResult
    from models.runtime.noop_runtime import NoopRuntime

    def slowed(plain: Callable[..., Any], rows: Callable[[Any], int]) -> Callable[..., Any]:
        def call(runtime: NoopRuntime, given: Any) -> Any:
            until = time.perf_counter() + call_s + row_s * rows(given)
            result = plain(runtime, given)
            time.sleep(max(0.0, until - time.perf_counter()))
            return result

        return call

    def network_rows(batch: StepBatch) -> int:
        return len(batch) + int(np.count_nonzero(batch.guidance_scale))

    step: Callable[[NoopRuntime, StepBatch], StepResult] = slowed(NoopRuntime.step, network_rows)
    decode: Callable[[NoopRuntime, Integers], Pixels] = slowed(NoopRuntime.decode, len)
    setattr(NoopRuntime, "step", step)  # noqa: B010
    setattr(NoopRuntime, "decode", decode)  # noqa: B010


def main() -> None:
    """Patch, then become the product's worker."""
    from service import cli

    call_s, row_s = map(float, os.environ[PACE].split())
    pace(call_s, row_s)
    cli.worker()


if __name__ == "__main__":
    main()
