"""Which runtime `auto` picks, why better ones are passed over, and how worker and gateway say so."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from torch import Tensor

from models.bundle import GENERATOR_WEIGHTS, TOKENIZER_WEIGHTS, Bundle, Manifest, open_bundle
from models.bundle_writer import write_bundle
from models.drawing import draw
from models.errors import RuntimeUnavailable
from models.generator import LfqBert
from models.runtime import loading, number_range
from models.runtime.base import Runtime
from models.runtime.loading import RUNTIMES, Choice, Wish, choose_runtime, load_runtime
from models.runtime.noop_runtime import NoopRuntime
from models.runtime.number_range import keeps_in_range, trial
from models.runtime.onnx_runtime import OnnxRuntime
from models.runtime.torch_runtime import TorchRuntime
from models.tokenizer import ConvTokenizer
from service.bench.running import free_port
from service.settings import Settings
from tests.service_fixtures import serving, start

ONE_THREAD = Wish(device="cpu", threads=1)


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose driver shows a GPU, which nothing here can use."""
    monkeypatch.setattr("models.runtime.devices.cuda_gpus", lambda: 1)


def reasons(choice: Choice) -> dict[str, str]:
    """What was passed over, and why."""
    assert all("\n" not in line for line in choice.passed_over)
    return dict(line.split(": ", 1) for line in choice.passed_over)


# -- names ---------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_refused_with_those_that_exist(tiny_bundle: Bundle) -> None:
    for choose in (load_runtime, choose_runtime):
        with pytest.raises(RuntimeUnavailable, match=", ".join(RUNTIMES)):
            choose(tiny_bundle, "jax")


@pytest.mark.parametrize("name", ["torch", "onnx", "noop"])
def test_a_name_gives_that_runtime(exported_tiny: Bundle, name: str) -> None:
    assert load_runtime(exported_tiny, name, device="cpu").name == name
    choice = choose_runtime(exported_tiny, name, ONE_THREAD)
    assert (choice.runtime.name, choice.passed_over) == (name, ())


def test_a_named_runtime_is_had_or_refused_but_never_replaced(tiny_bundle: Bundle) -> None:
    with pytest.raises(RuntimeUnavailable, match="maskbit export onnx"):
        choose_runtime(tiny_bundle, "onnx", ONE_THREAD)


def test_triton_without_an_address_says_which_setting_is_missing(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASKBIT_TRITON_URL", raising=False)
    with pytest.raises(RuntimeUnavailable, match="MASKBIT_TRITON_URL"):
        load_runtime(tiny_bundle, "triton")


@pytest.mark.parametrize("url", ["http://triton:8000", "grpc://triton:8001"])
def test_the_address_of_triton_is_a_setting(url: str) -> None:
    assert Settings(runtime="triton", triton_url=url).triton_url == url
    with pytest.raises(ValidationError, match="grpc:// or http://"):
        Settings(triton_url=url.partition("//")[2])


def test_an_empty_address_of_triton_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Compose and Helm pass on what was not set."""
    monkeypatch.setenv("MASKBIT_TRITON_URL", "")
    assert Settings().triton_url is None


def test_a_triton_is_asked_though_the_gpu_that_was_named_is_not_there(
    exported_tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.runtime.devices.cuda_gpus", lambda: 0)
    monkeypatch.setitem(loading._LOADERS, "triton", lambda bundle, wish: NoopRuntime(bundle))
    wish = Wish(device="cuda", threads=1)
    assert choose_runtime(exported_tiny, "auto", replace(wish, triton_url="grpc://triton:8001")).runtime
    with pytest.raises(RuntimeUnavailable, match="the NVIDIA driver shows 0 GPUs"):
        choose_runtime(exported_tiny, "auto", wish)


# -- auto ----------------------------------------------------------------------------------------------------


def test_on_a_cpu_auto_takes_the_exported_graphs(exported_tiny: Bundle) -> None:
    choice = choose_runtime(exported_tiny, "auto", ONE_THREAD)
    assert (choice.runtime.name, choice.runtime.device_name, choice.passed_over) == ("onnx", "cpu", ())


def test_without_graphs_auto_takes_torch_and_says_how_to_get_them(tiny_bundle: Bundle) -> None:
    choice = choose_runtime(tiny_bundle, "auto", ONE_THREAD)
    assert choice.runtime.name == "torch"
    assert list(reasons(choice)) == ["onnx on cpu"]
    assert f"run: maskbit export onnx {tiny_bundle.path}" in reasons(choice)["onnx on cpu"]


def test_auto_passes_over_graphs_of_another_revision(exported_tiny: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "tiny"
    shutil.copytree(exported_tiny.path, copy)
    file = copy / "bundle.json"
    file.write_text(file.read_text().replace("Apache-2.0", "MIT"))
    choice = choose_runtime(open_bundle(str(copy)), "auto", ONE_THREAD)
    assert choice.runtime.name == "torch"
    assert f"holds graphs of {exported_tiny.ref}" in reasons(choice)["onnx on cpu"]


def test_auto_passes_over_a_package_that_is_missing(
    exported_tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    choice = choose_runtime(exported_tiny, "auto", ONE_THREAD)
    assert choice.runtime.name == "torch"
    assert "pip install 'maskbit-serve[onnx]'" in reasons(choice)["onnx on cpu"]


def test_auto_tries_a_triton_first_whose_address_is_set(exported_tiny: Bundle) -> None:
    wish = replace(ONE_THREAD, triton_url=f"http://127.0.0.1:{free_port()}")
    choice = choose_runtime(exported_tiny, "auto", wish)
    assert choice.runtime.name == "onnx"
    [reason] = reasons(choice).values()
    assert wish.triton_url is not None
    assert wish.triton_url.partition("//")[2] in reason


@pytest.mark.usefixtures("one_gpu")
def test_on_a_gpu_auto_tries_all_that_could_use_it_before_the_cpu(exported_tiny: Bundle) -> None:
    choice = choose_runtime(exported_tiny, "auto", Wish(threads=1))
    assert (choice.runtime.name, choice.runtime.device_name) == ("onnx", "cpu")
    told = reasons(choice)
    assert list(told) == ["tensorrt on cuda:0", "torch on cuda:0", "onnx on cuda:0"]
    assert "maskbit" in told["tensorrt on cuda:0"]
    assert "PyTorch sees 0" in told["torch on cuda:0"]
    assert "onnxruntime-gpu" in told["onnx on cuda:0"]


@pytest.mark.usefixtures("one_gpu")
def test_a_gpu_that_was_asked_for_is_not_replaced_by_the_cpu(exported_tiny: Bundle) -> None:
    with pytest.raises(RuntimeUnavailable) as caught:
        choose_runtime(exported_tiny, "auto", Wish(device="cuda", threads=1))
    message = str(caught.value)
    assert message.startswith("no runtime can be had: tensorrt on cuda:0: ")
    assert "torch on cuda:0: " in message
    assert "onnx on cuda:0: " in message
    assert "\n" not in message


class Sick(NoopRuntime):
    """Loads, but fails at its first call."""

    name = "onnx"
    error: Exception = MemoryError()

    def warm_up(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "the memory of cpu does not suffice (MemoryError)"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nmore"), "the memory of cpu does not"),
        (RuntimeError("kernel missing\nmore"), "it does not start: kernel missing"),
    ],
)
def test_warming_up_is_part_of_choosing(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    sick = Sick(tiny_bundle)
    sick.error = error
    monkeypatch.setitem(loading._LOADERS, "onnx", lambda bundle, wish: sick)
    choice = choose_runtime(tiny_bundle, "auto", ONE_THREAD)
    assert choice.runtime.name == "torch"
    assert reasons(choice)["onnx on cpu"].startswith(said)
    with pytest.raises(RuntimeUnavailable, match=re.escape(said)):
        choose_runtime(tiny_bundle, "onnx", ONE_THREAD)
    named = replace(ONE_THREAD, device="auto")
    with pytest.raises(RuntimeUnavailable, match=re.escape(said.replace("cpu", "the machine"))):
        choose_runtime(tiny_bundle, "onnx", named)
    # A few calls of a command need no warming up.
    assert load_runtime(tiny_bundle, "auto", device="cpu") is sick


# -- precision -----------------------------------------------------------------------------------------------


@pytest.fixture
def large_bundle(
    tmp_path: Path, tiny_manifest: Manifest, tiny_tokenizer: ConvTokenizer, tiny_generator: LfqBert
) -> Bundle:
    """A model whose logits do not fit into fp16."""
    weights: dict[str, Tensor] = dict(tiny_generator.state_dict())
    weights["prediction_layer.weight"] = weights["prediction_layer.weight"] * 1e6
    files = {TOKENIZER_WEIGHTS: dict(tiny_tokenizer.state_dict()), GENERATOR_WEIGHTS: weights}
    return write_bundle(tmp_path / "large", tiny_manifest, files)


def test_a_precision_that_cannot_hold_the_logits_is_refused(large_bundle: Bundle) -> None:
    for choose in (
        lambda: choose_runtime(large_bundle, "torch", replace(ONE_THREAD, precision="fp16")),
        lambda: load_runtime(large_bundle, "torch", device="cpu", precision="fp16"),
    ):
        with pytest.raises(RuntimeUnavailable, match="do not fit into fp16; use --precision bf16 or fp32"):
            choose()
    assert load_runtime(large_bundle, "torch", device="cpu", precision="bf16").precision == "bf16"


@pytest.mark.parametrize(("had", "taken"), [(("bf16", "fp32"), "bf16"), (("fp32",), "fp32")])
def test_auto_takes_the_next_wider_precision_before_another_runtime(
    large_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, had: tuple[str, ...], taken: str
) -> None:
    """As on a GPU, whose runtimes begin with fp16 and may lack others."""

    def load(bundle: Bundle, wish: Wish) -> TorchRuntime:
        precision = "fp16" if wish.precision == "auto" else wish.precision
        if precision not in ("fp16", *had):
            raise RuntimeUnavailable(f"there are no graphs in {precision}")
        return TorchRuntime(bundle, device="cpu", precision=precision)

    monkeypatch.setitem(loading._LOADERS, "onnx", load)
    choice = choose_runtime(large_bundle, "auto", ONE_THREAD)
    assert (choice.runtime.precision, choice.passed_over) == (taken, ())


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_a_generator_that_fits_is_found_to_fit(tiny_bundle: Bundle, precision: str) -> None:
    config = tiny_bundle.manifest.generator
    assert config is not None
    assert keeps_in_range(TorchRuntime(tiny_bundle, device="cpu", precision=precision), config)


@pytest.mark.parametrize("kind", [TorchRuntime, OnnxRuntime])
def test_logits_that_are_no_numbers_are_found_by_the_tokens(
    exported_tiny: Bundle, kind: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A temperature of 0 makes them infinite, as an overflow does."""
    config = exported_tiny.manifest.generator
    assert config is not None
    runtime = kind(exported_tiny, device="cpu")
    assert keeps_in_range(runtime, config)
    batch = replace(trial(config), temperature=np.zeros(len(trial(config)), dtype=np.float32))
    monkeypatch.setattr(number_range, "trial", lambda config: batch)
    assert not keeps_in_range(runtime, config)


# -- worker and gateway --------------------------------------------------------------------------------------


def test_a_worker_with_exported_graphs_draws_what_torch_draws(exported_fruit: Bundle, tmp_path: Path) -> None:
    with serving(tmp_path, "--bundle", str(exported_fruit.path), "--runtime", "onnx") as running:
        [worker] = running.workers()
        assert (worker["runtime"], worker["precision"], worker["device"]) == ("onnx", "fp32", "cpu")
        assert worker["passed_over"] == []
        body = {"class_id": 3, "n": 2, "seed": 11, "steps": 8, "format": "tokens"}
        answer = running.client.post("/generate", json=body).json()
        assert running.client.get("/info").json()["runtime"] == "onnx"
    manifest = exported_fruit.manifest
    sampling = replace(manifest.sampling, steps=8)
    runtime = TorchRuntime(exported_fruit, device="cpu")
    expected = draw(runtime, manifest, sampling, [3, 3], [11, 12])
    assert np.array_equal([image["indices"] for image in answer["images"]], expected)


def test_ready_says_what_a_worker_passed_over_and_its_log_says_it_once(tmp_path: Path) -> None:
    with serving(tmp_path, "--device", "cpu") as running:
        [worker] = running.workers()
        assert worker["runtime"] == "torch"
        passed_over = worker["passed_over"]
    assert isinstance(passed_over, list)
    [reason] = passed_over
    assert reason.startswith("onnx on cpu: ")
    assert "maskbit export onnx" in reason
    assert running.log.read_text().count(f"passed over: {reason}") == 1


def test_a_named_runtime_that_cannot_be_had_ends_the_worker_with_one_line(
    redis_url: str, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    place = ("--redis-url", redis_url, "--bundle", str(tiny_bundle.path))
    process = start("worker", "--runtime", "onnx", *place, log=log)
    assert process.wait(60) == 2
    [line] = log.read_text().splitlines()
    assert f"run: maskbit export onnx {tiny_bundle.path}" in line


def test_commands_take_a_runtime(exported_fruit: Bundle, tmp_path: Path) -> None:
    bundle = ("--bundle", str(exported_fruit.path), "--device", "cpu")
    said = {}
    for name in ("onnx", "torch"):
        out = tmp_path / name
        command = ("generate", "--class", "3", "--seed", "1", "--steps", "4", "--out", str(out))
        assert start(*command, *bundle, "--runtime", name, log=tmp_path / "log").wait(60) == 0
        [picture] = out.iterdir()
        tokens = ("tokenize", str(picture), "--out", str(out / "tokens.json"))
        assert start(*tokens, *bundle, "--runtime", name, log=tmp_path / "log").wait(60) == 0
        said[name] = (out / "tokens.json").read_text()
    assert said["onnx"] == said["torch"]
