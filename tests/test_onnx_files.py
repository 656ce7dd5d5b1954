"""Exports on disk: what is kept, replaced, refused and named, whatever happens on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from export.onnx_export import export_onnx
from export.onnx_files import why_not_run
from export.onnx_graphs import OPSET
from maskbit_cli import build_app
from models.bundle import (
    GENERATOR_WEIGHTS,
    MANIFEST,
    TOKENIZER_WEIGHTS,
    Bundle,
    open_bundle,
)
from models.bundle_writer import copy_bundle, write_bundle
from models.checkpoint import read_weights
from models.errors import BundleError, ConfigError, RuntimeUnavailable
from models.exported import FOLDER, PRECISIONS, RECORD, TOKENIZER_DATA, generator_data, open_export
from models.networks import build_tokenizer
from models.signature import STEP
from models.version import own_version
from tests.export_fixtures import copied
from tests.test_onnx_export import TINY_TOKENIZER, random_weights, tokenizer_manifest


@pytest.fixture
def copy(exported_tiny: Bundle, tmp_path: Path) -> Bundle:
    """A bundle with graphs that may be changed."""
    return copied(exported_tiny.path, tmp_path)


@pytest.fixture
def codec(exported_codec: Bundle, tmp_path: Path) -> Bundle:
    """A bundle without generator, whose graphs may be changed and are soon made anew."""
    return copied(exported_codec.path, tmp_path)


def refused(bundle: Bundle, precision: str = "fp32") -> str:
    """Why the graphs of `bundle` are not taken."""
    with pytest.raises(RuntimeUnavailable) as caught:
        open_export(bundle, precision).check()
    message = str(caught.value)
    assert f"run: maskbit export onnx {bundle.path}" in message
    assert "\n" not in message
    return message


def change_record(folder: Path, **changes: object) -> None:
    path = folder / FOLDER / RECORD
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_graphs_that_do_not_fit_are_refused_with_what_to_do(copy: Bundle, tiny_bundle: Bundle) -> None:
    assert "has no exported graphs" in refused(tiny_bundle)
    change_record(copy.path, bundle="tiny@0123456789ab")
    assert f"holds graphs of tiny@0123456789ab; the bundle is {copy.ref}" in refused(copy)
    change_record(copy.path, format_version=2)
    assert "format_version is 2; this version reads 1" in refused(copy)
    (copy.path / FOLDER / RECORD).write_text("{")
    assert f"{RECORD}: " in refused(copy)
    (copy.path / FOLDER / RECORD).write_text("[1]")
    assert "it must hold one JSON object" in refused(copy)


def test_a_damaged_or_missing_file_is_told(copy: Bundle) -> None:
    data = copy.path / FOLDER / generator_data("fp16")
    damaged = bytearray(data.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    data.write_bytes(damaged)
    assert refused(copy, "fp16").startswith(f"{data} is damaged; run: maskbit export onnx")
    assert refused(copy, "fp16").endswith(" --precision fp16")
    open_export(copy, "fp32").check()
    (copy.path / FOLDER / TOKENIZER_DATA).unlink()
    assert f"{TOKENIZER_DATA} cannot be read: No such file or directory" in refused(copy)


def test_a_precision_is_added_to_those_that_are_there(copy: Bundle) -> None:
    folder, before = copy.path / FOLDER, open_export(copy, "fp16").record
    fp32 = {name for name in before.files if ".fp32." in name}
    kept = {name: digest for name, digest in before.files.items() if name not in fp32}
    change_record(copy.path, precisions=["fp16", "bf16"], files=kept)
    assert "has graphs in fp16, bf16, not in fp32" in refused(copy)
    said: list[str] = []
    assert export_onnx(copy, ["fp32", "fp32"], said.append) == folder
    assert [line.partition(":")[0] for line in said] == [
        "step.fp32.onnx",
        "step_guided.fp32.onnx",
        "step.fp16.onnx, step_guided.fp16.onnx, generator.fp16.data",
        "step.bf16.onnx, step_guided.bf16.onnx, generator.bf16.data",
        "encode.onnx, decode.onnx, tokenizer.data",
    ]
    assert all(line.endswith("written and checked, run by onnxruntime") for line in said[:2])
    assert all(line.endswith(": kept") for line in said[2:])
    record = open_export(copy, "fp32").record
    assert record == before  # exports are the same, byte for byte, every time
    for precision in PRECISIONS:
        open_export(copy, precision).check()
    assert {path.name for path in folder.iterdir()} == {*record.files, RECORD}
    assert {path.stat().st_nlink for path in folder.iterdir()} == {1}, "ONNX refuses hard links"
    assert open_bundle(str(copy.path)).revision == copy.revision


def test_what_another_exporter_made_is_not_kept_and_what_is_lost_is_named(codec: Bundle) -> None:
    (codec.path / FOLDER / generator_data("fp16")).touch()
    change_record(codec.path, torch="2.0.0")
    said: list[str] = []
    export_onnx(codec, say=said.append)
    assert said[0].startswith(f"not kept: maskbit {own_version()} with PyTorch 2.0.0 in opset {OPSET}")
    assert [line.partition(":")[0] for line in said[1:3]] == ["encode.onnx", "decode.onnx"]
    assert said[3:] == [
        "the older graphs in fp16 are removed; to have them anew: "
        f"maskbit export onnx {codec.path} --precision fp16"
    ]


def test_a_rebuild_keeps_nothing(codec: Bundle) -> None:
    said: list[str] = []
    export_onnx(codec, say=said.append)
    assert said == ["encode.onnx, decode.onnx, tokenizer.data: kept"]
    export_onnx(codec, say=said.append, rebuild=True)
    assert [line.endswith(", run by onnxruntime") for line in said[1:]] == [True, True]
    open_export(codec, "fp32").check()


def test_why_graphs_were_not_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not_run("fp16") is None
    assert why_not_run("bf16") == "onnxruntime has no bf16 on a CPU"
    monkeypatch.setattr("export.onnx_files.find_spec", lambda name: None)
    assert why_not_run("fp32") == "the package onnxruntime is not installed"


def test_an_unknown_precision_is_refused_before_any_work(copy: Bundle) -> None:
    with pytest.raises(ConfigError, match="precision is 'fp8'; allowed are fp32, fp16, bf16"):
        export_onnx(copy, ["fp32", "fp8"])


FAULTS = """
import os, resource, signal, sys
from export.onnx_export import export_onnx
from models.bundle import open_bundle
from models.errors import BundleError

bundle = open_bundle(sys.argv[1])

def attempt():
    try:
        export_onnx(bundle, ["fp32"])
    except BundleError as exc:
        print(exc, flush=True)

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
attempt()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
os.chmod(bundle.path, 0o555)
if os.geteuid() == 0:
    os.seteuid(65534)
attempt()
os.seteuid(os.getuid())
os.chmod(bundle.path, 0o755)
lines = []

def kill_at_the_third(line):
    lines.append(line)
    if len(lines) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

export_onnx(bundle, ["fp32"], kill_at_the_third)
"""


def test_a_full_disk_a_read_only_bundle_and_a_kill_leave_the_older_export(copy: Bundle) -> None:
    before = {path: path.read_bytes() for path in (copy.path / FOLDER).iterdir()}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, str(copy.path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    full, read_only = done.stdout.splitlines()
    told = f"{copy.path / FOLDER} cannot be written: "
    assert full.startswith(f"{told}File too large; ")
    assert read_only == f"{told}Permission denied; --out FOLDER exports into a copy"
    assert {path: path.read_bytes() for path in (copy.path / FOLDER).iterdir()} == before
    for precision in PRECISIONS:
        open_export(copy, precision).check()
        onnx.load(open_export(copy, precision).file(STEP))


def test_values_that_a_precision_cannot_store_are_told(tiny_bundle: Bundle, tmp_path: Path) -> None:
    weights = {name: read_weights(tiny_bundle.path / name) for name in tiny_bundle.manifest.files}
    weights[GENERATOR_WEIGHTS]["pos_emb"][0, 0, 0] = 1e6
    bundle = write_bundle(tmp_path / "large", tiny_bundle.manifest, weights)
    with pytest.raises(BundleError, match="pos_emb holds values that fp16 cannot store; use another"):
        export_onnx(bundle, ["fp16"])
    assert sorted(path.name for path in bundle.path.iterdir()) == sorted([MANIFEST, *weights])


def test_a_copy_that_is_called_as_a_bundled_model_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert copy_bundle(open_bundle("fruit"), Path("fruit")).path == tmp_path / "fruit"
    assert open_bundle("./fruit").path == tmp_path / "fruit"


def test_the_command_exports_into_a_copy(exported_tiny: Bundle, tmp_path: Path) -> None:
    manifest = tokenizer_manifest(TINY_TOKENIZER)
    weights = {TOKENIZER_WEIGHTS: random_weights(build_tokenizer(manifest.tokenizer), seed=3)}
    bundle = write_bundle(tmp_path / "bundle", manifest, weights)
    runner, app = CliRunner(), build_app(["export"])
    arguments = ["export", "onnx", str(bundle.path), "--precision", "fp32,fp16"]
    result = runner.invoke(app, [*arguments, "--out", str(tmp_path / "copy")])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == str(tmp_path / "copy" / FOLDER)
    assert not (bundle.path / FOLDER).exists()
    copy = open_bundle(str(tmp_path / "copy"))
    assert copy.revision == bundle.revision
    open_export(copy, "fp32").check()
    again = runner.invoke(app, [*arguments, "--precision", "bf16", "--out", str(tmp_path / "copy")])
    assert "encode.onnx, decode.onnx, tokenizer.data: kept" in again.output
    trained = copied(exported_tiny.path, tmp_path)
    foreign = runner.invoke(app, [*arguments, "--out", str(trained.path)])
    assert "holds another bundle; give an empty or a new folder" in str(foreign.exception)
    open_export(trained, "fp16").check()
    wrong = runner.invoke(app, [*arguments, "--precision", "half", "--out", str(tmp_path / "copy")])
    assert isinstance(wrong.exception, ConfigError)
    assert "precision is 'half'" in str(wrong.exception)
