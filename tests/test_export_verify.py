"""`maskbit export verify`: sound exports pass, damaged ones fail, and every number means what it says."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import maskbit_cli
from export.draw_odds import HALVINGS, OPEN, DrawOdds, log_odds
from export.parity import ask_reference, compare, lowest_psnr
from export.trial import Trial
from export.verdict_table import HEADER, line_of
from export.verify import Candidate, Verifier, parse_candidates, usual_candidates
from models.bundle import Bundle, Manifest, file_digest, open_bundle
from models.errors import InputError
from models.exported import FOLDER, RECORD
from models.generator import LfqBert
from models.runtime.base import StepBatch, StepResult
from models.runtime.noop_runtime import NoopRuntime
from models.runtime.torch_runtime import TorchRuntime
from models.sampler import guided_logits
from models.verification import FAILED, PASSED, UNAVAILABLE, VERIFICATION, Verification, verification_of

Run = Callable[..., tuple[int, str, str]]


def ignore() -> None:
    """Nobody waits for the progress of these calls."""


@pytest.fixture(scope="module")
def torch_fp32(tiny_bundle: Bundle) -> TorchRuntime:
    return TorchRuntime(tiny_bundle, device="cpu", precision="fp32")


@pytest.fixture
def bundle(exported_tiny: Bundle, tmp_path: Path) -> Bundle:
    """The tiny bundle with its graphs, to be changed."""
    shutil.copytree(exported_tiny.path, tmp_path / "tiny")
    return open_bundle(str(tmp_path / "tiny"))


def verify(bundle: Bundle, runtimes: str, pictures: int = 20, steps: int = 6) -> Verification:
    lines: list[str] = []
    trial = Trial(bundle.manifest, pictures, steps)
    report = Verifier(bundle, trial, "cpu", lines.append).verify(parse_candidates(runtimes))
    assert len(lines) == 1 + len(HEADER) + 1 + len(report.runtimes)
    return report


# -- the numbers ---------------------------------------------------------------------------------------------


def test_a_runtime_agrees_with_itself_in_everything(
    torch_fp32: TorchRuntime, tiny_manifest: Manifest
) -> None:
    trial, calls = Trial(tiny_manifest, 20, 5), []
    reference = ask_reference(torch_fp32, trial, lambda: calls.append("reference"))
    assert len(calls) == trial.reference_calls
    numbers = compare(torch_fp32, reference, lambda: calls.append("compared"))
    assert calls.count("compared") == trial.calls
    assert (numbers.encode_bits, numbers.encode_tokens, numbers.decode_psnr_db) == (1, 1, 100)
    assert (numbers.step_tokens, numbers.step_drawn, numbers.trace_tokens) == (1, 1, 1)
    assert (numbers.equal_pictures, numbers.logit_error, numbers.logit_error_max) == (20, 0, 0)
    assert numbers.encode_ms > 0
    assert numbers.step_ms is not None
    assert numbers.step_ms > 0


def test_a_runtime_that_draws_something_else_agrees_in_little(
    torch_fp32: TorchRuntime, tiny_bundle: Bundle
) -> None:
    reference = ask_reference(torch_fp32, Trial(tiny_bundle.manifest, 5, 4), ignore)
    numbers = compare(NoopRuntime(tiny_bundle), reference, ignore)
    for share in (numbers.encode_bits, numbers.step_tokens, numbers.step_drawn, numbers.trace_tokens):
        assert share is not None
        assert share < 0.9
    assert numbers.decode_psnr_db < 20
    assert numbers.equal_pictures == 0
    assert numbers.logit_error is not None
    assert numbers.logit_error > 0.1


def middle_batch(runtime: TorchRuntime, manifest: Manifest) -> StepBatch:
    return ask_reference(runtime, Trial(manifest, 6, 4), ignore).traces[0][2].batch


def test_log_odds_found_by_halving_are_those_of_the_logits(
    torch_fp32: TorchRuntime, tiny_manifest: Manifest, tiny_generator: LfqBert
) -> None:
    batch = middle_batch(torch_fp32, tiny_manifest)
    order = np.argsort(batch.guidance_scale == 0, kind="stable")
    batch = batch.take(order)
    tensors = {one.name: torch.from_numpy(getattr(batch, one.name)) for one in fields(batch)}
    with torch.inference_mode():
        logits = guided_logits(
            tiny_generator,
            tensors["tokens"],
            tensors["labels"],
            tensors["guidance_scale"],
            int(np.count_nonzero(batch.guidance_scale)),
            5,
        ).double()
    scaled = logits / tensors["temperature"][:, None, None, None].double()
    categories = np.full(batch.tokens.shape, 3)
    wanted = (scaled[..., :3].logsumexp(-1) - scaled[..., 3:].logsumexp(-1)).numpy()
    found = log_odds(torch_fp32, batch, categories, ignore)
    drawn = (batch.tokens == 8) & (np.abs(wanted) < OPEN)
    assert drawn.sum() > 50
    assert np.abs(found - wanted)[drawn].max() < 1e-4


def test_a_bias_of_one_logit_is_seen_as_it_is(tiny_bundle: Bundle, torch_fp32: TorchRuntime) -> None:
    """0.01 on category 0 moves the log odds below category 1 by 0.01, and others by less."""
    batch = middle_batch(torch_fp32, tiny_bundle.manifest)
    batch = replace(batch, guidance_scale=np.zeros_like(batch.guidance_scale))
    odds = DrawOdds.of(torch_fp32, batch, ignore)
    biased = TorchRuntime(tiny_bundle, device="cpu", precision="fp32")
    assert biased.generator is not None
    first = torch.tensor([0.01] + [0.0] * 7)
    handle = biased.generator.register_forward_hook(lambda module, args, logits: logits + first)
    errors = odds.errors(biased, ignore)
    handle.remove()
    temperature = float(batch.temperature[0])
    assert errors.min() > -1e-4
    assert errors.max() == pytest.approx(0.01 / temperature, abs=2e-4)


def test_the_worst_picture_gives_the_psnr() -> None:
    black = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    other = black.copy()
    assert lowest_psnr(black, other) == 100
    other[1] = 1
    assert lowest_psnr(black, other) == pytest.approx(20 * math.log10(255))
    other[2] = 255
    assert lowest_psnr(black, other) == pytest.approx(0)


# -- verdicts ------------------------------------------------------------------------------------------------


def test_sound_exports_pass_and_the_report_comes_back(bundle: Bundle) -> None:
    report = verify(bundle, "onnx:fp32,onnx:fp16,torch:bf16,torch:fp32", pictures=64, steps=16)
    assert [(one.name, one.verdict, one.reason) for one in report.runtimes] == [
        ("onnx fp32", PASSED, None),
        ("onnx fp16", PASSED, None),
        ("torch bf16", PASSED, None),
        ("torch fp32", PASSED, None),
    ]
    report.write(bundle.path)
    assert verification_of(bundle) == report
    assert set(report.reference) == {"encode_ms", "decode_ms", "step_ms"}
    assert report.exports == {f"{FOLDER}/{RECORD}": file_digest(bundle.path / FOLDER / RECORD)}
    held = [one.thresholds for one in report.runtimes[:2]]
    assert [(one.step_tokens, one.trace_tokens) for one in held if one] == [(0.9999, 0.9999), (0.99, None)]
    fp32, fp16 = (one.numbers for one in report.runtimes[:2])
    assert fp32 is not None
    assert fp16 is not None
    assert fp32.logit_error is not None
    assert fp16.logit_error is not None
    assert fp32.logit_error < 1e-4 < fp16.logit_error < 0.1


def change_a_weight(bundle: Bundle, graph: str) -> None:
    """Another value for one weight of the largest matrix of a graph, and a record that agrees with it."""
    folder = bundle.path / FOLDER
    model = onnx.load(folder / graph, load_external_data=False)
    largest = max(model.graph.initializer, key=lambda one: math.prod(one.dims))
    place = {one.key: one.value for one in largest.external_data}
    assert largest.data_type == onnx.TensorProto.FLOAT
    with (folder / place["location"]).open("r+b") as file:
        file.seek(int(place["offset"]))
        file.write(np.float32(50).tobytes())
    values = json.loads((folder / RECORD).read_text())
    values["files"] = {name: file_digest(folder / name) for name in values["files"]}
    (folder / RECORD).write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("graph", "missed"),
    [
        ("step.fp32.onnx", {"step_tokens", "trace_tokens"}),
        ("encode.onnx", {"encode_bits"}),
        ("decode.onnx", {"decode_psnr_db"}),
    ],
)
def test_one_wrong_weight_fails(bundle: Bundle, graph: str, missed: set[str]) -> None:
    change_a_weight(bundle, graph)
    (one,) = verify(bundle, "onnx:fp32").runtimes
    assert one.verdict == FAILED
    assert one.reason is not None
    assert {part.split()[0] for part in one.reason.split("; ")} == missed
    assert one.reason in line_of(one)


def test_what_cannot_be_loaded_is_listed_with_its_reason(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASKBIT_TRITON_URL", raising=False)
    report = verify(bundle, "triton,torch:fp16", pictures=4, steps=2)
    triton, half = report.runtimes
    assert (triton.verdict, half.verdict) == (UNAVAILABLE, PASSED)
    assert triton.reason is not None
    assert "MASKBIT_TRITON_URL" in triton.reason
    assert triton.numbers is None


def test_a_runtime_that_breaks_down_fails_and_the_next_one_is_measured(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object) -> object:
        raise ValueError("out of memory\nat a long address")

    monkeypatch.setattr("models.runtime.graph_runtime.GraphRuntime.decode", decode)
    broken, sound = verify(bundle, "onnx:fp32,torch:bf16", pictures=4, steps=2).runtimes
    assert (broken.verdict, broken.reason, broken.numbers) == (FAILED, "out of memory", None)
    assert sound.verdict == PASSED


def test_a_bundle_without_generator_is_compared_by_its_tokenizer(exported_codec: Bundle) -> None:
    (one,) = verify(exported_codec, "torch:bf16").runtimes
    assert one.verdict == PASSED
    assert one.numbers is not None
    assert one.numbers.encode_bits == 1
    assert one.numbers.step_tokens is one.numbers.trace_tokens is one.numbers.logit_error is None


def test_by_default_everything_that_a_service_would_take_is_tried(
    bundle: Bundle, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def names(bundle: Bundle, device: str) -> list[str]:
        return [f"{one.runtime} {one.precision}" for one in usual_candidates(bundle, device)]

    others = ["tensorrt auto", "triton auto"]
    assert names(bundle, "cpu") == ["onnx fp32", "onnx fp16", *others]
    assert names(tiny_bundle, "cpu") == ["onnx fp32", *others]
    monkeypatch.setattr("models.runtime.devices.cuda_gpus", lambda: 1)
    assert names(tiny_bundle, "auto") == ["onnx fp32", "torch auto", *others]


# -- the command ---------------------------------------------------------------------------------------------


def test_names_of_runtimes_are_parsed_once_each() -> None:
    assert parse_candidates("onnx:fp16, triton,onnx:fp16") == [Candidate("onnx", "fp16"), Candidate("triton")]
    for text in ("", "onnx:", "noop", "onnx:int8", "onnx;fp32", "auto", "onnx,,torch"):
        with pytest.raises(InputError, match="allowed are onnx, tensorrt, triton, torch"):
            parse_candidates(text)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process, as loading PyTorch for each call would take longer than the calls."""

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["maskbit", "export", "verify", *arguments])
        with pytest.raises(SystemExit) as ended:
            maskbit_cli.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return command


def test_the_command_prints_a_table_and_writes_the_report(
    bundle: Bundle, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("--pictures", "3", "--steps", "2", "--device", "cpu")
    code, out, _ = run(str(bundle.path), "--runtimes", "torch:bf16", *few)
    assert code == 0
    for words in (bundle.ref, "torch fp32 cpu", "torch bf16 cpu", "passed", "verification.json"):
        assert words in out
    change_a_weight(bundle, "step.fp32.onnx")
    # Named but not there, or failed: both are code 1, and the report is written all the same.
    monkeypatch.delenv("MASKBIT_TRITON_URL", raising=False)
    for named, others in (("onnx:fp32", []), ("triton", ["onnx fp32"])):
        code, out, _ = run(str(bundle.path), "--runtimes", named, *few)
        assert code == 1
        report = verification_of(bundle)
        assert report is not None
        one, *former = report.runtimes
        assert [each.name for each in former] == others  # what was measured on the older export is gone
        assert one.runtime == named.partition(":")[0]
        assert one.reason is not None
        assert one.reason in out


def test_by_default_a_sound_export_succeeds_on_a_cpu(
    bundle: Bundle, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASKBIT_TRITON_URL", raising=False)
    code, out, _ = run(str(bundle.path), "--pictures", "3", "--steps", "2", "--device", "cpu")
    assert code == 0, out
    report = verification_of(bundle)
    assert report is not None
    assert {one.runtime: one.verdict for one in report.runtimes} == {
        "onnx": PASSED,
        "tensorrt": UNAVAILABLE,
        "triton": UNAVAILABLE,
    }


def test_a_step_from_a_state_that_the_own_way_came_through_is_not_computed_again(
    torch_fp32: TorchRuntime, tiny_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = ask_reference(torch_fp32, Trial(tiny_manifest, 3, 4), ignore)
    step, calls = torch_fp32.step, []

    def counted(batch: StepBatch) -> StepResult:
        calls.append(len(batch))
        return step(batch)

    monkeypatch.setattr(torch_fp32, "step", counted)
    assert compare(torch_fp32, reference, ignore).trace_tokens == 1
    assert len(calls) == 4 + HALVINGS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--runtimes", "onnx:int8"), "allowed are onnx, tensorrt, triton, torch"),
        (("--steps", "129"), "steps is 129"),
        (("--steps", "0"), "--steps"),
        (("--pictures", "0"), "--pictures"),
        (("--device", "tpu"), "allowed are auto, cpu"),
    ],
)
def test_wrong_use_is_one_line(tiny_bundle: Bundle, run: Run, arguments: tuple[str, ...], words: str) -> None:
    code, _, err = run(str(tiny_bundle.path), *arguments)
    assert code == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1, err


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_measured(
    bundle: Bundle, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may write everywhere, whatever the mode of a folder.
    monkeypatch.setattr("export.cli.os.access", lambda path, mode: Path(path) != bundle.path)
    code, out, err = run(str(bundle.path), "--runtimes", "torch:bf16")
    assert (code, out) == (2, "")
    assert f"{bundle.path} cannot be written to" in err
    assert "--out FOLDER makes a copy" in err


def test_a_bundle_that_cannot_be_written_to_is_one_line_after_the_table(bundle: Bundle, run: Run) -> None:
    (bundle.path / VERIFICATION).mkdir()
    code, out, err = run(str(bundle.path), "--runtimes", "torch:bf16", "--pictures", "1", "--steps", "1")
    assert code == 2
    assert "passed" in out
    assert "cannot be written" in err
