"""`verification.json`: what it may say, who reads it, and how `/v1/models` and `maskbit inspect` show it."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.bundle import Bundle, open_bundle
from models.errors import BundleError, ConfigError
from models.exported import FOLDER, RECORD
from models.inspection import describe
from models.verification import (
    FAILED,
    PASSED,
    UNAVAILABLE,
    VERIFICATION,
    Numbers,
    RuntimeVerdict,
    Thresholds,
    Verification,
    read_verification,
    verification_of,
)
from tests.gateway_harness import Gateway, gateway_running

NUMBERS = Numbers(
    encode_bits=1.0,
    encode_tokens=1.0,
    decode_psnr_db=100.0,
    encode_ms=1.5,
    decode_ms=2.5,
    step_tokens=0.9991,
    step_drawn=0.9893,
    trace_tokens=0.96,
    equal_pictures=60,
    logit_error=0.004,
    logit_error_max=0.02,
    step_ms=3.5,
)
LEAST = Thresholds(encode_bits=0.9999, decode_psnr_db=50.0, step_tokens=0.99)
HALF = RuntimeVerdict("onnx", "fp16", PASSED, device="cpu", numbers=NUMBERS, thresholds=LEAST)
GONE = RuntimeVerdict("tensorrt", "auto", UNAVAILABLE, reason="the package tensorrt is missing")


def report_on(model: Bundle, **changes: Any) -> Verification:
    report = Verification(
        bundle=model.ref,
        version="0.1.0",
        date="2026-11-23T09:00:00+00:00",
        hardware="a processor, 2 threads",
        pictures=64,
        steps=16,
        reference={"encode_ms": 1.0, "decode_ms": 2.0, "step_ms": 3.0},
        runtimes=(HALF, GONE),
    )
    return replace(report, **changes)


@pytest.fixture
def bundle(plain_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A bundle of its own for each test, without weights."""
    shutil.copytree(plain_bundle.path, tmp_path / "tiny")
    return open_bundle(str(tmp_path / "tiny"))


def put(bundle: Bundle, text: str) -> None:
    (bundle.path / VERIFICATION).write_text(text)


# -- the file ------------------------------------------------------------------------------------------------


def test_a_report_is_read_as_it_was_written(bundle: Bundle) -> None:
    assert verification_of(bundle) is None
    report = report_on(bundle)
    assert report.write(bundle.path) == bundle.path / VERIFICATION
    assert verification_of(bundle) == report
    assert [path.name for path in bundle.path.iterdir() if path.name.startswith(".")] == []


def changed(report: Verification, **values: Any) -> str:
    return json.dumps(json.loads(report.to_json()) | values)


def with_runtime(report: Verification, **values: Any) -> str:
    found = json.loads(report.to_json())
    found["runtimes"][0] |= values
    return json.dumps(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (lambda report: "", "Expecting value"),
        (lambda report: "[]", "one JSON object"),
        (lambda report: "\xff", "Expecting value"),
        (lambda report: "[" * 100_000, "recursion"),
        (lambda report: changed(report, format_version=2), "format_version is 2; this version reads 1"),
        (lambda report: changed(report, colour="red"), "unknown colour"),
        (lambda report: changed(report, pictures=0), "pictures is 0"),
        (lambda report: changed(report, runtimes={}), "runtimes is"),
        (lambda report: changed(report, runtimes=["onnx"]), "objects are allowed"),
        (lambda report: with_runtime(report, verdict="perfect"), "verdict is 'perfect'"),
        (lambda report: with_runtime(report, numbers=None), "onnx fp16 passed, but not by its numbers"),
        (
            lambda report: with_runtime(report, thresholds={**vars(LEAST), "step_tokens": 0.9999}),
            "onnx fp16 passed, but not by its numbers",
        ),
        (
            lambda report: with_runtime(report, numbers={**vars(NUMBERS), "step_ms": "fast"}),
            "step_ms is 'fast'",
        ),
        (lambda report: report.to_json().replace("3.5", "NaN"), "step_ms is 'nan'"),
        (lambda report: changed(report, exports={"../large": "0"}), "exports lists '../large'"),
        (lambda report: changed(report, exports={"tensorrt/../a.plan.json": "0"}), "exports lists"),
    ],
)
def test_a_report_that_is_not_as_it_should_be_is_refused(
    bundle: Bundle, text: Callable[[Verification], str], words: str
) -> None:
    put(bundle, text(report_on(bundle)))
    with pytest.raises(BundleError, match=VERIFICATION) as refused:
        verification_of(bundle)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_was_measured_of_other_runtimes_stays_in_a_report_that_is_made_alike(bundle: Bundle) -> None:
    served = replace(HALF, runtime="triton")
    slower = replace(HALF, numbers=replace(NUMBERS, step_ms=9.0))
    former = report_on(bundle)
    assert report_on(bundle, runtimes=(served,)).joined(former).runtimes == (served, HALF)
    assert report_on(bundle, runtimes=(slower,)).joined(former).runtimes == (slower,)
    assert report_on(bundle, runtimes=(served,)).joined(None).runtimes == (served,)
    for name, value in {
        "bundle": "another@0123456789ab",
        "version": "0.2.0",
        "hardware": "a GPU",
        "pictures": 16,
        "steps": 8,
        "exports": {"onnx/export.json": "0" * 64},
    }.items():
        report = report_on(bundle, runtimes=(served,), **{name: value})
        assert report.joined(former).runtimes == (served,)


def test_a_report_on_another_revision_is_refused(bundle: Bundle) -> None:
    report_on(bundle, bundle="tiny@0123456789ab").write(bundle.path)
    with pytest.raises(BundleError, match=f"is of tiny@0123456789ab, not of {bundle.ref}"):
        verification_of(bundle)


def test_a_report_on_an_export_that_was_made_anew_is_refused(bundle: Bundle) -> None:
    record = bundle.path / FOLDER / RECORD
    record.parent.mkdir()
    record.write_text("one")
    digest = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"  # sha256sum
    report_on(bundle, exports={f"{FOLDER}/{RECORD}": digest}).write(bundle.path)
    assert verification_of(bundle) is not None
    record.write_text("other")
    with pytest.raises(
        BundleError, match=r"measured on another onnx/export\.json; run 'maskbit export verify'"
    ):
        verification_of(bundle)
    # A gateway's folder may have no graphs at all.
    record.unlink()
    assert verification_of(bundle) is not None


def test_a_report_that_cannot_be_written_or_read_is_one_line(bundle: Bundle) -> None:
    (bundle.path / VERIFICATION).mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        report_on(bundle).write(bundle.path)
    with pytest.raises(BundleError, match="cannot be read: Is a directory"):
        read_verification(bundle.path)


def test_thresholds_name_what_misses_them() -> None:
    poor = replace(NUMBERS, step_tokens=0.98, decode_psnr_db=49.5)
    assert LEAST.missed_by(NUMBERS) == []
    assert LEAST.missed_by(poor) == [
        "decode_psnr_db is 49.5, at least 50 is needed",
        "step_tokens is 0.98, at least 0.99 is needed",
    ]
    strict = replace(LEAST, trace_tokens=0.9999)
    assert strict.missed_by(NUMBERS) == ["trace_tokens is 0.96, at least 0.9999 is needed"]
    assert strict.missed_by(replace(NUMBERS, trace_tokens=None)) == []
    assert LEAST.missed_by(replace(NUMBERS, encode_bits=float("nan"))) != []


# -- who shows it --------------------------------------------------------------------------------------------


def test_inspect_says_what_was_verified(tiny_bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle.path, tmp_path / "tiny")
    bundle = open_bundle(str(tmp_path / "tiny"))
    assert describe(bundle)["verified"] == "no"
    report_on(bundle).write(bundle.path)
    assert describe(bundle)["verified"] == (
        "2026-11-23 on a processor, 2 threads: onnx fp16 passed, tensorrt auto unavailable"
    )
    put(bundle, "{}")
    assert describe(bundle)["verified"].startswith("no: ")


@pytest.fixture
def gateway(bundle: Bundle, gateway_redis: str) -> Iterator[Gateway]:
    with gateway_running(bundle, gateway_redis, decoders=1) as running:
        yield running


def card(gateway: Gateway) -> dict[str, Any]:
    listed = gateway.client.get("/v1/models").json()["data"]
    one: dict[str, Any] = gateway.client.get(f"/v1/models/{listed[0]['id']}").json()
    assert listed == [one]
    return one


def test_models_tell_how_their_runtimes_were_verified(gateway: Gateway, bundle: Bundle) -> None:
    assert "verification" not in card(gateway)
    report_on(bundle).write(bundle.path)
    assert card(gateway)["verification"] == {
        "date": "2026-11-23T09:00:00+00:00",
        "version": "0.1.0",
        "pictures": 64,
        "steps": 16,
        "reference": {"encode_ms": 1.0, "decode_ms": 2.0, "step_ms": 3.0},
        "runtimes": [
            {
                "runtime": "onnx",
                "precision": "fp16",
                "verdict": "passed",
                "device": "cpu",
                "encode_bits": 1.0,
                "decode_psnr_db": 100.0,
                "step_tokens": 0.9991,
                "step_drawn": 0.9893,
                "trace_tokens": 0.96,
                "logit_error": 0.004,
                "encode_ms": 1.5,
                "decode_ms": 2.5,
                "step_ms": 3.5,
            },
            {"runtime": "tensorrt", "precision": "auto", "verdict": "unavailable"},
        ],
    }
    # Measured again while the gateway runs.
    poor = replace(NUMBERS, step_tokens=0.98)
    failed = replace(
        HALF, verdict=FAILED, numbers=poor, reason="step_tokens is 0.98, at least 0.99 is needed"
    )
    broken = RuntimeVerdict("torch", "fp16", FAILED, reason="/a/path of the machine is of no use to clients")
    report_on(bundle, runtimes=(failed, broken)).write(bundle.path)
    first, second = card(gateway)["verification"]["runtimes"]
    assert (first["verdict"], first["reason"]) == (FAILED, failed.reason)
    assert second == {"runtime": "torch", "precision": "fp16", "verdict": FAILED}
    (bundle.path / VERIFICATION).unlink()
    assert "verification" not in card(gateway)


def test_a_report_on_another_revision_or_a_broken_one_is_not_shown(
    gateway: Gateway, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    report_on(bundle, bundle="tiny@0123456789ab").write(bundle.path)
    with caplog.at_level(logging.WARNING, "service.gateway.verification_file"):
        assert "verification" not in card(gateway)
        assert caplog.messages == [], "during a hand-over this is as it should be"
        put(bundle, "{")
        for _ in range(3):
            assert "verification" not in card(gateway)
        assert len(caplog.messages) == 1
        assert str(bundle.path / VERIFICATION) in caplog.messages[0]
        report_on(bundle).write(bundle.path)
        assert "verification" in card(gateway)


def test_an_export_that_is_made_anew_outdates_what_is_shown(gateway: Gateway, bundle: Bundle) -> None:
    record = bundle.path / FOLDER / RECORD
    record.parent.mkdir()
    record.write_text("one")
    digest = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    report_on(bundle, exports={f"{FOLDER}/{RECORD}": digest}).write(bundle.path)
    assert "verification" in card(gateway)
    record.with_suffix(".new").write_text("another")
    os.replace(record.with_suffix(".new"), record)
    assert "verification" not in card(gateway)


def test_the_document_describes_the_summary(gateway: Gateway) -> None:
    schemas = gateway.client.get("/openapi.json").json()["components"]["schemas"]
    assert set(schemas["RuntimeCard"]["required"]) == {"runtime", "precision", "verdict"}
    assert "verification" not in schemas["ModelCard"]["required"]
