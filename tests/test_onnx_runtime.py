"""OnnxRuntime on real exports: the tokens that PyTorch draws, and one clear line for all that is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.bundle import Bundle, file_digest, open_bundle
from models.drawing import Drawing, advance, draw, step_batch
from models.errors import RuntimeUnavailable
from models.exported import FOLDER, RECORD
from models.runtime.base import STRICT_BUCKET, Integers, Pixels, StepBatch
from models.runtime.onnx_runtime import OnnxRuntime
from models.runtime.torch_runtime import TorchRuntime

Break = Callable[[Path], object]


@pytest.fixture(scope="module")
def tiny(exported_tiny: Bundle) -> OnnxRuntime:
    return OnnxRuntime(exported_tiny, device="cpu", threads=1)


@pytest.fixture(scope="module")
def strict(exported_tiny: Bundle) -> OnnxRuntime:
    return OnnxRuntime(exported_tiny, device="cpu", threads=1, strict=True)


@pytest.fixture(scope="module")
def reference(exported_tiny: Bundle) -> TorchRuntime:
    return TorchRuntime(exported_tiny, device="cpu")


@pytest.fixture
def copy(exported_tiny: Bundle, tmp_path: Path) -> Bundle:
    """The tiny model with its graphs, to be broken."""
    shutil.copytree(exported_tiny.path, tmp_path / "tiny")
    return open_bundle(str(tmp_path / "tiny"))


def pictures(count: int, side: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def drawings(bundle: Bundle, count: int) -> list[Drawing]:
    """Pictures at their first step, every third without guidance."""
    config, sampling = bundle.manifest.generator, bundle.manifest.sampling
    assert config is not None
    plain = replace(sampling, guidance_scale=0.0)
    return [
        Drawing.start(config, plain if k % 3 == 2 else sampling, k % config.nclass, k) for k in range(count)
    ]


def first_batch(bundle: Bundle, count: int) -> StepBatch:
    return step_batch(drawings(bundle, count))


# -- the same as PyTorch -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "fruit"])
def test_pictures_have_the_tokens_that_pytorch_draws(request: pytest.FixtureRequest, name: str) -> None:
    bundle: Bundle = request.getfixturevalue(f"exported_{name}")
    manifest, labels, seeds = bundle.manifest, [0, 3, 4], [5, 6, 7]
    ours, theirs = OnnxRuntime(bundle, device="cpu", threads=1), TorchRuntime(bundle, device="cpu")
    for guidance_scale in (manifest.sampling.guidance_scale, 0.0):
        sampling = replace(manifest.sampling, steps=8, guidance_scale=guidance_scale)
        assert np.array_equal(
            draw(ours, manifest, sampling, labels, seeds), draw(theirs, manifest, sampling, labels, seeds)
        )


@pytest.mark.parametrize("name", ["tiny", "fruit"])
def test_tokens_are_equal_and_pictures_within_rounding(request: pytest.FixtureRequest, name: str) -> None:
    bundle: Bundle = request.getfixturevalue(f"exported_{name}")
    ours, theirs = OnnxRuntime(bundle, device="cpu", threads=1), TorchRuntime(bundle, device="cpu")
    images = pictures(5, bundle.manifest.image_size)
    indices = ours.encode(images)
    assert indices.dtype == np.int64
    assert np.array_equal(indices, theirs.encode(images))
    back = ours.decode(indices)
    assert back.dtype == np.uint8
    assert np.abs(back.astype(int) - theirs.decode(indices)).max() <= 1


def test_rows_at_different_steps_with_and_without_guidance_share_a_call(
    tiny: OnnxRuntime, reference: TorchRuntime, exported_tiny: Bundle
) -> None:
    batch = first_batch(exported_tiny, 7)
    mine, theirs = tiny.step(batch), reference.step(batch)
    assert np.array_equal(mine.tokens, theirs.tokens)
    assert np.array_equal(mine.drawn, theirs.drawn)


def test_a_generator_in_fp16_draws_nearly_the_same(exported_tiny: Bundle, reference: TorchRuntime) -> None:
    half = OnnxRuntime(exported_tiny, device="cpu", precision="fp16", threads=1)
    assert half.precision == "fp16"
    batch = first_batch(exported_tiny, 16)
    assert (half.step(batch).drawn == reference.step(batch).drawn).mean() >= 0.99


@pytest.mark.parametrize("count", [1, 5, 33, 70])
def test_any_number_of_rows_is_answered_row_by_row(tiny: OnnxRuntime, count: int) -> None:
    images = pictures(count, 16)
    indices = tiny.encode(images)
    assert np.array_equal(indices, np.concatenate([tiny.encode(images[k : k + 1]) for k in range(count)]))
    assert tiny.decode(indices).shape == images.shape


def test_an_answer_is_not_overwritten_by_the_next(tiny: OnnxRuntime) -> None:
    images = pictures(2, 16)
    first = tiny.encode(images[:1])
    kept = first.copy()
    tiny.encode(images[1:])
    assert np.array_equal(first, kept)


def test_a_bundle_without_generator_tokenizes_and_detokenizes(
    exported_codec: Bundle, tiny_bundle: Bundle
) -> None:
    runtime = OnnxRuntime(exported_codec, device="cpu", threads=1)
    runtime.warm_up()
    assert runtime.decode(runtime.encode(pictures(1, 16))).shape == (1, 16, 16, 3)
    with pytest.raises(RuntimeUnavailable, match="no generator"):
        runtime.step(first_batch(tiny_bundle, 1))


# -- strict --------------------------------------------------------------------------------------------------


def finished(runtime: OnnxRuntime, drawing: Drawing, company: list[Drawing]) -> Integers:
    """The tokens of `drawing` stepped together with `company`, at changing places in the batch."""
    place = 0
    while not drawing.finished:
        others = [one for one in company if not one.finished]
        place = (place + 1) % (len(others) + 1)
        advance(runtime, [*others[:place], drawing, *others[place:]])
    return drawing.tokens


def test_with_strict_a_row_is_bit_equal_alone_and_in_company(
    strict: OnnxRuntime, exported_tiny: Bundle
) -> None:
    assert strict.buckets == (STRICT_BUCKET,)
    count = 9
    alone = [finished(strict, one, []) for one in drawings(exported_tiny, count)]
    for k in range(count):
        one, *others = np.roll(np.array(drawings(exported_tiny, count), dtype=object), -k)
        assert np.array_equal(finished(strict, one, others), alone[k])
    images = pictures(count, 16)
    together = strict.encode(images)
    assert np.array_equal(together, np.concatenate([strict.encode(one[None]) for one in images]))
    back = strict.decode(together)
    assert np.array_equal(back, np.concatenate([strict.decode(one[None]) for one in together]))


# -- what callers hand over ----------------------------------------------------------------------------------


def test_read_only_and_strided_arrays_are_taken_as_they_are(tiny: OnnxRuntime) -> None:
    images = pictures(4, 16)
    expected = tiny.encode(images)
    received = np.frombuffer(images.tobytes(), dtype=np.uint8).reshape(images.shape)
    assert not received.flags.writeable
    assert np.array_equal(tiny.encode(received), expected)
    assert np.array_equal(tiny.encode(images[::-1]), expected[::-1])
    swapped = np.asfortranarray(images)
    assert np.array_equal(tiny.encode(swapped), expected)
    wide = np.concatenate([images, images], axis=2)[:, :, :16]
    assert np.array_equal(tiny.encode(wide), expected)
    expected.setflags(write=False)
    assert np.array_equal(tiny.decode(expected), tiny.decode(expected.copy()))


def test_read_only_steps_are_taken_as_they_are(tiny: OnnxRuntime, exported_tiny: Bundle) -> None:
    batch = first_batch(exported_tiny, 3)
    expected = tiny.step(batch).drawn
    for one in vars(batch).values():
        one.setflags(write=False)
    assert np.array_equal(tiny.step(batch).drawn, expected)


# -- threads, noise, torch -----------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_a_session_has_the_threads_that_were_asked_for(exported_tiny: Bundle, threads: int) -> None:
    before = len(os.listdir("/proc/self/task"))
    runtime = OnnxRuntime(exported_tiny, device="cpu", threads=threads)
    # The caller works too.
    assert len(os.listdir("/proc/self/task")) - before == len(runtime.specs) * (threads - 1)


def test_nothing_is_written_to_the_terminal(exported_tiny: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    OnnxRuntime(exported_tiny, device="cpu", threads=1).warm_up()
    assert capfd.readouterr() == ("", "")


def in_a_process(code: str, *arguments: str) -> str:
    """What a Python process with this code printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_no_torch_is_needed(exported_tiny: Bundle) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from models.bundle import open_bundle\n"
        "from models.drawing import draw\n"
        "from models.runtime.loading import choose_runtime\n"
        "bundle = open_bundle(sys.argv[1])\n"
        "choice = choose_runtime(bundle)\n"
        "grids = draw(choice.runtime, bundle.manifest, bundle.manifest.sampling, [1], [2])\n"
        "print(choice.runtime.name, choice.passed_over, choice.runtime.decode(grids).shape)\n"
    )
    assert in_a_process(code, str(exported_tiny.path)) == "onnx () (1, 16, 16, 3)\n"


# -- what can be wrong ---------------------------------------------------------------------------------------


def refused(bundle: Bundle, **options: object) -> str:
    """The one line with which a runtime is refused."""
    with pytest.raises(RuntimeUnavailable) as caught:
        OnnxRuntime(bundle, **{"device": "cpu", **options})  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_bundle_that_was_not_exported_names_the_command(tiny_bundle: Bundle) -> None:
    assert refused(tiny_bundle) == (
        f"{tiny_bundle.path} has no exported graphs; run: maskbit export onnx {tiny_bundle.path}"
    )


def test_a_precision_that_was_not_exported_names_the_command(copy: Bundle) -> None:
    record = copy.path / FOLDER / RECORD
    values = json.loads(record.read_text())
    values["precisions"] = ["fp32"]
    values["files"] = {name: digest for name, digest in values["files"].items() if "16" not in name}
    record.write_text(json.dumps(values))
    message = refused(copy, precision="fp16")
    assert "has graphs in fp32, not in fp16" in message
    assert message.endswith(f"maskbit export onnx {copy.path} --precision fp16")
    assert "allowed are auto, fp32, fp16, bf16" in refused(copy, precision="int8")


def test_a_precision_that_the_device_cannot_compute_in_is_refused(exported_tiny: Bundle) -> None:
    message = refused(exported_tiny, precision="bf16")
    assert "on cpu; choose another --precision or --runtime" in message


def test_graphs_of_an_older_revision_are_refused(copy: Bundle) -> None:
    file = copy.path / "bundle.json"
    file.write_text(file.read_text().replace("Apache-2.0", "MIT"))
    message = refused(open_bundle(str(copy.path)))
    assert f"graphs of {copy.ref}" in message
    assert f"maskbit export onnx {copy.path}" in message


def flip_a_byte(folder: Path) -> None:
    with (folder / "generator.fp32.data").open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)
        file.seek(5000)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (flip_a_byte, "generator.fp32.data is damaged"),
        (lambda folder: (folder / "step.fp32.onnx").unlink(), "step.fp32.onnx cannot be read: No such file"),
        (lambda folder: (folder / "decode.onnx").write_bytes(b""), "decode.onnx is damaged"),
        (lambda folder: (folder / RECORD).write_text("{"), f"{RECORD}: "),
        (lambda folder: (folder / RECORD).unlink(), "has no exported graphs"),
    ],
)
def test_missing_and_damaged_files_are_named(copy: Bundle, broken: Break, said: str) -> None:
    broken(copy.path / FOLDER)
    message = refused(copy)
    assert said in message
    assert f"maskbit export onnx {copy.path}" in message


def recorded(folder: Path) -> None:
    """Let the record agree with the files."""
    values = json.loads((folder / RECORD).read_text())
    values["files"] = {name: file_digest(folder / name) for name in values["files"]}
    (folder / RECORD).write_text(json.dumps(values))


def swap(folder: Path, one: str, other: str) -> None:
    (folder / one).rename(folder / "aside")
    (folder / other).rename(folder / one)
    (folder / "aside").rename(folder / other)
    recorded(folder)


def test_a_graph_in_the_place_of_another_is_refused_by_what_it_says_of_itself(copy: Bundle) -> None:
    swap(copy.path / FOLDER, "step.fp32.onnx", "step_guided.fp32.onnx")
    message = refused(copy)
    assert "step.fp32.onnx holds" in message
    assert "step_guided" in message
    assert f"maskbit export onnx {copy.path} --precision fp32" in message


def test_a_graph_with_other_tensors_than_this_version_feeds_is_refused(copy: Bundle) -> None:
    import onnx

    file = copy.path / FOLDER / "decode.onnx"
    model = onnx.load(file, load_external_data=False)
    assert model.graph.input[0].name == "indices"
    model.graph.input[0].name = "grids"
    for node in model.graph.node:
        node.input[:] = ["grids" if name == "indices" else name for name in node.input]
    onnx.save(model, file)
    recorded(copy.path / FOLDER)
    message = refused(copy)
    assert "'grids'" in message
    assert "'indices'" in message
    assert "maskbit export onnx" in message


def test_a_file_that_is_no_graph_is_refused(copy: Bundle) -> None:
    (copy.path / FOLDER / "encode.onnx").write_bytes(b"no graph at all")
    recorded(copy.path / FOLDER)
    assert "encode.onnx" in refused(copy)


def test_a_missing_package_names_what_to_install(
    exported_tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'maskbit-serve[onnx]'" in refused(exported_tiny)


def test_cuda_without_its_provider_names_what_to_install(
    exported_tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    monkeypatch.setattr("models.runtime.devices.cuda_gpus", lambda: 1)
    message = refused(exported_tiny, device="cuda")
    assert "onnxruntime-gpu" in message
    assert "--device cpu" in message
    assert OnnxRuntime(exported_tiny, device="auto", threads=1).device_name == "cpu"


def test_a_provider_that_does_not_start_is_no_reason_to_compute_on_the_cpu(
    exported_tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr("models.runtime.devices.cuda_gpus", lambda: 1)
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        message = refused(exported_tiny, device="auto")
    assert "cannot use cuda:0: install the versions of CUDA and cuDNN" in message


def test_unknown_devices_and_gpus_that_are_not_there_are_refused(
    exported_tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "allowed are auto, cpu, cuda" in refused(exported_tiny, device="tpu")
    monkeypatch.setattr("models.runtime.devices.cuda_gpus", lambda: 2)
    assert "the NVIDIA driver shows 2 GPUs" in refused(exported_tiny, device="cuda:2")


def test_too_little_memory_at_warm_up_is_one_line(exported_fruit: Bundle) -> None:
    code = (
        "import resource, sys\n"
        "from models.bundle import open_bundle\n"
        "from models.errors import RuntimeUnavailable\n"
        "from models.runtime import loading\n"
        "from models.runtime.onnx_runtime import OnnxRuntime\n"
        "class Poor(OnnxRuntime):\n"
        "    def warm_up(self):\n"
        "        pages = int(open('/proc/self/statm').read().split()[0])\n"
        "        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(),) * 2)\n"
        "        self._warm('decode', (32,))\n"
        "loading._LOADERS['onnx'] = lambda bundle, wish: Poor(bundle, device='cpu', threads=1)\n"
        "try:\n"
        "    loading.choose_runtime(open_bundle(sys.argv[1]), 'onnx')\n"
        "except RuntimeUnavailable as exc:\n"
        "    print(exc)\n"
    )
    said = in_a_process(code, str(exported_fruit.path))
    assert said.startswith("the memory of ")
    assert "does not suffice" in said
    assert said.count("\n") == 1
