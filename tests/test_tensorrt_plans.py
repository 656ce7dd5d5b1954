"""`maskbit export tensorrt` with a stand-in for TensorRT: what plans are made of, and which are refused.

The graphs are real exports; whether TensorRT builds them, only a machine with TensorRT and a GPU can tell.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from safetensors.torch import load_file

from export.tensorrt_plans import export_tensorrt, profile_rows
from models.bundle import TOKENIZER_WEIGHTS, Bundle, file_digest, open_bundle
from models.bundle_writer import write_bundle
from models.errors import BundleError, ConfigError, RuntimeUnavailable
from models.exported import open_export
from models.runtime.base import CUDA_BUCKETS, STRICT_BUCKET, TOKENIZER_ROWS
from models.signature import DECODE, ENCODE, STEP, STEP_GUIDED
from models.tensorrt_plan import Place, choose_precision, find_plan, open_plan, plan_file, record_file
from tests import tensorrt_stand_in
from tests.tensorrt_stand_in import H200, Maker

GRAPHS = (ENCODE, DECODE, STEP, STEP_GUIDED)


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Any:
    return tensorrt_stand_in.module(monkeypatch)


@pytest.fixture
def maker(trt: Any, exported_tiny: Bundle, tmp_path: Path) -> Maker:
    """Makes plans of a copy of the tiny model with its graphs."""
    return Maker(trt, open_bundle(str(shutil.copytree(exported_tiny.path, tmp_path / "tiny"))))


def test_plans_are_named_by_graph_precision_gpu_and_version_with_a_record_beside(maker: Maker) -> None:
    maker.make("fp16", "fp32")
    folder = maker.bundle.path / "tensorrt"
    names = {
        f"{graph}.nvidia-h200.trt11.4.0.106.plan"
        for graph in (
            "encode.fp32",
            "decode.fp32",
            *(f"{step}.{one}" for step in ("step", "step_guided") for one in ("fp16", "fp32")),
        )
    }
    expected = names | {f"{name}.json" for name in names} | {"timing.nvidia-h200.trt11.4.0.106.cache"}
    assert {path.name for path in folder.iterdir()} == expected
    record = json.loads((folder / "step.fp16.nvidia-h200.trt11.4.0.106.plan.json").read_text())
    assert record["bundle"] == maker.bundle.ref
    assert (record["gpu"], record["tensorrt"]) == ("NVIDIA H200", "11.4.0.106")
    assert set(record["onnx"]) == {"step.fp16.onnx", "generator.fp16.data"}


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_plan_has_one_profile_of_one_shape_for_each_batch_size(maker: Maker, graph: str) -> None:
    maker.make()
    inputs = maker.specs[graph].inputs
    profiles = maker.asked(graph)["profiles"]
    assert [shapes[inputs[0].name][0][0] for shapes in profiles] == list(profile_rows(graph))
    for rows, shapes in zip(profile_rows(graph), profiles, strict=True):
        assert shapes == {one.name: [[rows, *one.shape]] * 3 for one in inputs}


def test_every_bucket_has_a_profile_or_is_made_of_whole_largest_ones() -> None:
    assert profile_rows(STEP) == profile_rows(STEP_GUIDED) == CUDA_BUCKETS
    for graph in (ENCODE, DECODE):
        rows = profile_rows(graph)
        assert max(rows) == TOKENIZER_ROWS
        assert all(bucket in rows or bucket % max(rows) == 0 for bucket in CUDA_BUCKETS)
        assert STRICT_BUCKET in rows


def test_tf32_is_off_and_the_workspace_is_what_was_asked_for(maker: Maker) -> None:
    maker.make(workspace=123)
    assert not maker.asked(ENCODE)["tf32"]
    assert maker.asked(STEP)["workspace"] == 123


def test_tensorrt_10_is_told_to_type_strongly_and_11_does_so_by_itself(maker: Maker) -> None:
    maker.make()
    assert maker.asked(STEP)["creation_flags"] == 0
    maker.trt.__version__, older = "10.15.1.29", Place(H200.gpu, "10.15.1.29")
    maker.make(place=older)
    assert maker.asked(STEP, place=older)["creation_flags"] == 1 << 1


def test_fitting_plans_stay_unless_a_rebuild_is_asked_for(maker: Maker) -> None:
    everything = ("encode.onnx", "decode.onnx", "step.fp16.onnx", "step_guided.fp16.onnx")
    assert maker.make() == everything
    assert maker.make() == ()
    assert maker.lines[-1].endswith("fits and stays")
    assert maker.make("bf16") == ("step.bf16.onnx", "step_guided.bf16.onnx")
    assert maker.make(rebuild=True) == everything
    assert maker.make("fp16", "bf16", rebuild=True) == (
        *everything,
        "step.bf16.onnx",
        "step_guided.bf16.onnx",
    )


def test_a_plan_of_graphs_that_were_exported_anew_is_built_again(maker: Maker) -> None:
    maker.make()
    graph = maker.bundle.path / "onnx" / "step.fp16.onnx"
    model = onnx.load(graph, load_external_data=False)
    model.doc_string = "another export"
    graph.write_bytes(model.SerializeToString())
    record = maker.bundle.path / "onnx" / "export.json"
    values = json.loads(record.read_text())
    values["files"][graph.name] = file_digest(graph)
    record.write_text(json.dumps(values))
    with pytest.raises(RuntimeUnavailable, match=r"from ONNX graphs that are no more .*; run: maskbit"):
        open_plan(maker.bundle, STEP, "fp16", H200)
    open_plan(maker.bundle, STEP_GUIDED, "fp16", H200)
    assert maker.make() == ("step.fp16.onnx",)


def test_missing_onnx_graphs_are_exported_first(trt: Any, tiny_bundle: Bundle, tmp_path: Path) -> None:
    # A tokenizer alone is exported in less time.
    manifest = replace(tiny_bundle.manifest, generator=None)
    weights = {TOKENIZER_WEIGHTS: load_file(tiny_bundle.path / TOKENIZER_WEIGHTS)}
    maker = Maker(trt, write_bundle(tmp_path / "tokenizer", manifest, weights))
    assert maker.make() == ("encode.onnx", "decode.onnx")
    assert maker.lines[0] == "there are no sound ONNX graphs in fp16: exporting them first"
    open_export(maker.bundle, "fp16").check()


def test_timings_are_kept_for_the_next_graph_and_those_of_no_use_are_replaced(maker: Maker) -> None:
    maker.make()
    assert maker.asked(STEP)["timed_before"] == ["encode.onnx", "decode.onnx"]
    cache = maker.bundle.path / "tensorrt" / f"timing.{H200.slug}.cache"
    cache.write_bytes(b"{broken")
    assert maker.make("bf16") == ("step.bf16.onnx", "step_guided.bf16.onnx")
    assert maker.asked(STEP, "bf16")["timed_before"] == []
    assert any("timing cache" in line for line in maker.lines)
    assert json.loads(cache.read_bytes()) == ["step.bf16.onnx", "step_guided.bf16.onnx"]


def test_progress_is_told_with_the_phases_of_tensorrt(maker: Maker) -> None:
    maker.make()
    assert maker.lines[0].startswith(
        "encode.fp32.nvidia-h200.trt11.4.0.106.plan: building for batches of 1, 2, 4"
    )
    assert maker.lines[1] == "  Building, 2 steps"
    assert re.fullmatch(r"encode\.fp32\..*\.plan: \d+ MiB, \d+ s", maker.lines[2])


def test_what_the_parser_cannot_read_is_reported_with_node_names(maker: Maker) -> None:
    maker.trt.OnnxParser.unknown = ("Conv",)
    with pytest.raises(
        RuntimeUnavailable, match=r"11\.4\.0\.106 cannot read .*encode\.onnx: node \S+ \(Conv\)"
    ):
        maker.make()
    assert not list((maker.bundle.path / "tensorrt").glob("*.plan*"))


def test_a_failing_build_gives_the_reason_in_one_line_with_advice_on_memory(maker: Maker) -> None:
    maker.trt.Builder.failure = "Requested amount of GPU memory could not be allocated"
    with pytest.raises(
        RuntimeUnavailable, match="could not be allocated; stop what else uses the GPU"
    ) as told:
        maker.make()
    assert "\n" not in str(told.value)
    maker.trt.Builder.failure = "no kernel"
    with pytest.raises(RuntimeUnavailable, match=r"cannot build .*encode\.onnx: no kernel$"):
        maker.make()


def test_a_bundle_that_cannot_be_written_is_reported(maker: Maker) -> None:
    (maker.bundle.path / "tensorrt").write_bytes(b"a file, not a folder")
    with pytest.raises(BundleError, match=r"tensorrt cannot be written: .*--out FOLDER"):
        maker.make()


# Refusing plans

Break = Callable[[Path], object]


def _edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


BROKEN: dict[str, tuple[Break, str]] = {
    "damaged": (lambda plan: plan.write_bytes(plan.read_bytes()[:-1]), "it is damaged"),
    "of another bundle": (
        lambda plan: _edit(record_file(plan), bundle="pears@0123"),
        "it is of pears@0123; the bundle is tiny@",
    ),
    "of another GPU": (
        lambda plan: _edit(record_file(plan), gpu="NVIDIA L4"),
        "it is for NVIDIA L4 with TensorRT 11.4.0.106; this is NVIDIA H200 with TensorRT 11.4.0.106",
    ),
    "of another version": (
        lambda plan: _edit(record_file(plan), tensorrt="10.15.1.29"),
        "it is for NVIDIA H200 with TensorRT 10.15.1.29; this is",
    ),
    "of another graph": (
        lambda plan: _edit(record_file(plan), graph="step_guided"),
        "it is step_guided in fp16 under another name",
    ),
    "of another format": (
        lambda plan: _edit(record_file(plan), format_version=2),
        "format_version is 2; this version reads 1",
    ),
    "with an unknown key": (lambda plan: _edit(record_file(plan), taste="sweet"), "taste"),
    "with a broken record": (lambda plan: record_file(plan).write_text("[]"), "one JSON object"),
    "without record": (lambda plan: record_file(plan).unlink(), "its record .* cannot be read"),
    "unreadable": (lambda plan: _link_to_itself(plan), "cannot be read: Too many levels"),
}


def test_plans_run_without_the_graphs_that_they_were_built_from(maker: Maker) -> None:
    maker.make()
    shutil.rmtree(maker.bundle.path / "onnx")
    open_plan(maker.bundle, STEP, "fp16", H200)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_plan_that_does_not_fit_is_refused_in_one_line_and_built_again(maker: Maker, kind: str) -> None:
    maker.make()
    plan = plan_file(maker.bundle, STEP, "fp16", H200)
    spoil, reason = BROKEN[kind]
    spoil(plan)
    with pytest.raises(RuntimeUnavailable, match=reason) as told:
        open_plan(maker.bundle, STEP, "fp16", H200)
    assert str(told.value).endswith(f"; run: maskbit export tensorrt {maker.bundle.path}")
    assert "\n" not in str(told.value)
    assert maker.make() == ("step.fp16.onnx",)
    open_plan(maker.bundle, STEP, "fp16", H200)


def test_where_no_plan_fits_those_for_other_machines_are_named(maker: Maker) -> None:
    with pytest.raises(
        RuntimeUnavailable, match=r"has no TensorRT plan of step in bf16 for NVIDIA H200 .*; run"
    ):
        open_plan(maker.bundle, STEP, "bf16", H200)
    maker.make("bf16")
    other = Place("NVIDIA A100-SXM4-80GB", "11.4.0.106")
    with pytest.raises(
        RuntimeUnavailable, match=r"but for nvidia-h200\.trt11\.4\.0\.106; run: .* --precision bf16$"
    ):
        open_plan(maker.bundle, STEP, "bf16", other)
    assert find_plan(maker.bundle, STEP, "bf16", other) is None


def test_plans_for_several_machines_lie_side_by_side(maker: Maker) -> None:
    other = Place("NVIDIA A100-SXM4-80GB", "11.4.0.106")
    assert other.slug == "nvidia-a100-sxm4-80gb.trt11.4.0.106"
    assert len(maker.make()) == len(maker.make(place=other)) == 4
    assert maker.make() == maker.make(place=other) == ()


def test_auto_is_the_first_precision_that_was_built(maker: Maker) -> None:
    assert choose_precision(maker.bundle, "auto", GRAPHS, H200) == "fp16"
    maker.make("fp32")
    assert choose_precision(maker.bundle, "auto", GRAPHS, H200) == "fp32"
    maker.make("bf16")
    assert choose_precision(maker.bundle, "auto", GRAPHS, H200) == "bf16"
    assert choose_precision(maker.bundle, "fp32", GRAPHS, H200) == "fp32"
    with pytest.raises(RuntimeUnavailable, match="precision is 'int3'; allowed are auto, fp32, fp16, bf16"):
        choose_precision(maker.bundle, "int3", GRAPHS, H200)


def test_an_unknown_precision_is_refused_before_anything_is_loaded(tiny_bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="precision is 'int3'; allowed are fp32, fp16, bf16"):
        export_tensorrt(tiny_bundle, ["int3"])
