"""TensorRTRuntime with a stand-in for TensorRT and GPU that runs the same graphs: layout, buckets, refusals.

The last test is for a machine that has both.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maskbit_cli
from export.onnx_export import export_onnx
from export.tensorrt_plans import export_tensorrt
from models.bundle import Bundle, open_bundle
from models.drawing import Drawing, draw, step_batch
from models.errors import RuntimeUnavailable
from models.runtime import tensorrt_library
from models.runtime.base import (
    CUDA_BUCKETS,
    STRICT_BUCKET,
    TOKENIZER_ROWS,
    Integers,
    Pixels,
    Runtime,
    StepBatch,
)
from models.runtime.cuda_lane import CudaLane
from models.runtime.loading import load_runtime
from models.runtime.tensorrt_runtime import ALIGNMENT, Buffers, TensorRTRuntime, layout
from models.runtime.torch_runtime import TorchRuntime
from models.signature import ENCODE, STEP_GUIDED, graph_specs
from tests import tensorrt_stand_in
from tests.tensorrt_stand_in import SCRATCH, WEIGHTS, HostLane, Maker

Load = Callable[..., TensorRTRuntime]


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in, installed as the package and its GPU."""
    return tensorrt_stand_in.install(monkeypatch)


@pytest.fixture
def maker(trt: Any, exported_tiny: Bundle, tmp_path: Path) -> Maker:
    """Has made the plans in fp32 of a copy of the tiny model."""
    maker = Maker(trt, open_bundle(str(shutil.copytree(exported_tiny.path, tmp_path / "tiny"))))
    maker.make("fp32")
    return maker


@pytest.fixture(scope="module")
def reference(tiny_bundle: Bundle) -> TorchRuntime:
    return TorchRuntime(tiny_bundle, device="cpu")


def pictures(count: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def drawn(runtime: Runtime, bundle: Bundle, count: int) -> Integers:
    manifest = bundle.manifest
    labels = [number % 5 for number in range(count)]
    return draw(runtime, manifest, manifest.sampling, labels, range(count))


def first_steps(bundle: Bundle, count: int) -> StepBatch:
    """Pictures at their first step."""
    config, sampling = bundle.manifest.generator, bundle.manifest.sampling
    assert config is not None
    return step_batch([Drawing.start(config, sampling, 0, seed) for seed in range(count)])


def test_pictures_and_tokens_are_those_of_pytorch(maker: Maker, reference: TorchRuntime) -> None:
    runtime = TensorRTRuntime(maker.bundle)
    assert (runtime.name, runtime.precision, runtime.device_name) == ("tensorrt", "fp32", "cuda:0")
    indices = runtime.encode(pictures(5))
    assert np.array_equal(indices, reference.encode(pictures(5)))
    assert np.abs(runtime.decode(indices).astype(int) - reference.decode(indices)).max() <= 1
    assert np.array_equal(drawn(runtime, maker.bundle, 6), drawn(reference, maker.bundle, 6))


def test_a_batch_that_is_larger_than_the_tokenizers_profiles_is_run_in_parts(
    maker: Maker, reference: TorchRuntime
) -> None:
    count = TOKENIZER_ROWS + 1
    assert min(bucket for bucket in CUDA_BUCKETS if bucket >= count) > TOKENIZER_ROWS
    runtime = TensorRTRuntime(maker.bundle)
    assert np.array_equal(runtime.encode(pictures(count)), reference.encode(pictures(count)))
    # One more than the largest profile holds costs one more row.
    assert list(runtime._replays) == [(ENCODE, TOKENIZER_ROWS), (ENCODE, 1)]


def test_each_graph_is_captured_once_for_each_batch_size(maker: Maker) -> None:
    runtime = TensorRTRuntime(maker.bundle)
    for count in (3, 4, 4, 1):
        runtime.encode(pictures(count))
    assert HostLane.captured == 2
    runtime.step(first_steps(maker.bundle, 4))
    assert HostLane.captured == 3


def test_results_are_not_overwritten_by_the_next_call(maker: Maker) -> None:
    runtime = TensorRTRuntime(maker.bundle)
    images = pictures(2)
    first = runtime.encode(images[:1])
    kept = first.copy()
    assert not np.array_equal(runtime.encode(images[1:]), kept)
    assert np.array_equal(first, kept)


def test_strict_runs_one_batch_size_alone(maker: Maker, reference: TorchRuntime) -> None:
    runtime = TensorRTRuntime(maker.bundle, strict=True)
    assert runtime.buckets == (STRICT_BUCKET,)
    assert np.array_equal(runtime.encode(pictures(9)), reference.encode(pictures(9)))
    assert HostLane.captured == 1


def test_memory_is_that_of_pytorch_and_the_weights_of_the_plans(maker: Maker) -> None:
    assert TensorRTRuntime(maker.bundle).memory_bytes() == (1 << 20) + 4 * WEIGHTS
    assert SCRATCH >= ALIGNMENT


def test_a_precision_that_was_not_built_is_refused_with_the_command(maker: Maker) -> None:
    with pytest.raises(
        RuntimeUnavailable, match=r"no TensorRT plan of step in bf16 .*; run: .* --precision bf16$"
    ):
        TensorRTRuntime(maker.bundle, precision="bf16")


def test_a_plan_that_tensorrt_does_not_load_gives_its_reason(maker: Maker) -> None:
    maker.trt.Runtime.failure = "the GPU is out of memory"
    with pytest.raises(RuntimeUnavailable, match="cannot load the plan of encode: the GPU is out of memory"):
        TensorRTRuntime(maker.bundle)


def test_a_plan_with_other_tensors_or_batch_sizes_is_to_be_built_again(
    maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = TensorRTRuntime(maker.bundle)
    monkeypatch.setattr(runtime, "sizes", {ENCODE: (3,)})
    with pytest.raises(
        RuntimeUnavailable,
        match=r"encode has profiles for 1, 2, 4, 8, 16, 32 rows, not for 3; run: .* --rebuild$",
    ):
        runtime.encode(pictures(3))
    monkeypatch.setattr(tensorrt_stand_in.ICudaEngine, "num_io_tensors", 1)
    with pytest.raises(
        RuntimeUnavailable, match=r"encode has tensors images, not images, indices; run: .* --rebuild$"
    ):
        TensorRTRuntime(maker.bundle)


def test_every_bucket_is_warmed_up(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = TensorRTRuntime(maker.bundle)
    monkeypatch.setattr(runtime, "sizes", dict.fromkeys(runtime.specs, (1, 4)))
    runtime.warm_up()
    assert HostLane.captured == 4 * 2


def test_without_the_package_the_runtime_and_the_command_name_what_to_install(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        RuntimeUnavailable, match=r"tensorrt is missing: pip install 'maskbit-serve\[tensorrt\]'"
    ):
        load_runtime(tiny_bundle, "tensorrt")
    monkeypatch.setattr(sys, "argv", ["maskbit", "export", "tensorrt", str(tiny_bundle.path)])
    with pytest.raises(SystemExit) as ended:
        maskbit_cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "maskbit: the package tensorrt is missing: pip install 'maskbit-serve[tensorrt]'\n"
    )


def test_a_tensorrt_that_is_too_old_or_broken_is_refused(trt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trt.__version__ = "10.3.0"
    with pytest.raises(
        RuntimeUnavailable, match=r"TensorRT is 10\.3\.0; at least 10\.15 is needed: pip install"
    ):
        tensorrt_library.tensorrt_module()

    def fail(name: str) -> None:
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(RuntimeUnavailable, match=r"tensorrt does not load: libnvinfer\.so\.11"):
        tensorrt_library.tensorrt_module()


def test_a_cpu_is_no_place_for_it() -> None:
    with pytest.raises(
        RuntimeUnavailable, match="TensorRT needs an NVIDIA GPU; the device 'cpu' is cpu here"
    ):
        tensorrt_library.gpu_for("cpu")


def test_errors_of_tensorrt_are_logged_and_the_last_is_the_reason(
    trt: Any, caplog: pytest.LogCaptureFixture
) -> None:
    log = tensorrt_library.make_log(trt)
    assert log.reason() == "it gave no reason"
    log.log(trt.Severity.WARNING, "slow")
    log.log(trt.Severity.ERROR, "  broken\nin two lines")
    assert log.reason() == "broken"
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]


@pytest.mark.parametrize("rows", [1, 3, 32])
def test_tensors_of_a_call_lie_aligned_side_by_side(tiny_bundle: Bundle, rows: int) -> None:
    tensors = graph_specs(tiny_bundle.manifest)[STEP_GUIDED].inputs
    offsets, size = layout(tensors, rows)
    lane: Any = HostLane("cuda:0")
    views = Buffers(tensors, rows, lane).views
    spans = sorted((offsets[name], offsets[name] + view.nbytes) for name, view in views.items())
    assert len(spans) == len(tensors) == 8
    assert all(offset % ALIGNMENT == 0 for offset in (*offsets.values(), size))
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert spans[-1][1] <= size


def test_the_stand_in_of_the_stream_offers_what_the_real_one_does() -> None:
    def public(lane: type) -> set[str]:
        return {name for name in vars(lane) if not name.startswith("_")}

    assert public(HostLane) - {"captured", "give", "latest"} == public(CudaLane)


@pytest.mark.gpu
@pytest.mark.skipif(
    find_spec("tensorrt") is None or not torch.cuda.is_available(), reason="needs TensorRT and a GPU"
)
@pytest.mark.timeout(1800)
def test_real_plans_give_the_tokens_of_pytorch(
    tiny_bundle: Bundle, reference: TorchRuntime, tmp_path: Path
) -> None:
    bundle = open_bundle(str(shutil.copytree(tiny_bundle.path, tmp_path / "tiny")))
    export_onnx(bundle, ["fp32"])
    export_tensorrt(bundle, ["fp32"])
    runtime = TensorRTRuntime(bundle)
    runtime.warm_up()
    indices = reference.encode(pictures(40))
    assert (runtime.encode(pictures(40)) == indices).mean() > 0.99
    assert np.abs(runtime.decode(indices).astype(int) - reference.decode(indices)).max() <= 1
    assert (drawn(runtime, bundle, 6) == drawn(reference, bundle, 6)).mean() > 0.99
    assert runtime.memory_bytes() > 0
