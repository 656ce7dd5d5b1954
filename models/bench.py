"""`maskbit bench models`: seconds per picture alone and in a batch, on this machine."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from models.bundle import open_bundle
from models.drawing import draw
from models.runtime.loading import load_runtime

REPEATS = 3


def hardware() -> str:
    """One line on processor, GPU and versions."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{_processor()}, {torch.get_num_threads()} threads{gpu}; Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def median_seconds(call: Callable[[], object]) -> float:
    """Median over REPEATS calls, after one that is not counted."""
    call()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[REPEATS // 2]


def bench(ref: str, *, device: str, steps: int, batch: int) -> Iterator[str]:
    """Lines of the report."""
    bundle = open_bundle(ref)
    manifest = bundle.manifest
    started = time.perf_counter()
    runtime = load_runtime(bundle, device=device)
    runtime.warm_up()
    yield f"{bundle.ref} on {runtime.name} {runtime.precision}; {hardware()}"
    yield f"load and warm up   {time.perf_counter() - started:8.2f} s"
    side = manifest.image_size
    images = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    grids = runtime.encode(images)
    tokenize = median_seconds(lambda: runtime.encode(images)) / batch
    detokenize = median_seconds(lambda: runtime.decode(grids)) / batch
    yield f"tokenize           {tokenize * 1e3:8.2f} ms a picture in a batch of {batch}"
    yield f"detokenize         {detokenize * 1e3:8.2f} ms a picture in a batch of {batch}"
    if manifest.generator is None:
        return
    sampling = replace(manifest.sampling, steps=steps)

    def pictures(count: int) -> float:
        labels = [k % manifest.generator.nclass for k in range(count)]  # type: ignore[union-attr]
        return median_seconds(
            lambda: runtime.decode(draw(runtime, manifest, sampling, labels, list(range(count))))
        )

    alone, together = pictures(1), pictures(batch)
    guided = f"{steps} steps, guidance {sampling.guidance_scale:g}"
    yield f"picture alone      {alone:8.3f} s ({guided})"
    yield f"{batch:2d} pictures        {together:8.3f} s in one batch, {together / batch:.3f} s each"
    yield f"alone / in a batch {alone * batch / together:8.2f} x per picture"
