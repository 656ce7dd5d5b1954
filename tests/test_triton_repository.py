"""Model repositories for Triton: what is in them, and what is refused. test_triton.py has them served."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from export.triton_config import text_of
from export.triton_repository import write_repository
from export.triton_sources import Choice
from maskbit_cli import build_app
from models.bundle import Bundle
from models.errors import ConfigError, RuntimeUnavailable
from models.runtime.base import CUDA_BUCKETS
from models.runtime.triton_models import model_name
from models.signature import graph_specs
from models.tensorrt_plan import Place, PlanRecord, plan_file, precision_of, record_file

PYTHON = Choice("python", "fp32")


def config_of(folder: Path) -> Any:
    """The message in a config.pbtxt."""
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    return text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())


def test_the_configuration_is_of_tritons_own_type_and_says_what_the_signature_says(
    exported_tiny: Bundle, tmp_path: Path
) -> None:
    assert write_repository(exported_tiny, tmp_path, Choice("onnxruntime", "fp16", "gpu", instances=2)) == 1
    specs = graph_specs(exported_tiny.manifest)
    assert {folder.name for folder in tmp_path.iterdir()} == {f"tiny_{graph}" for graph in specs}
    for graph, spec in specs.items():
        folder = tmp_path / f"tiny_{graph}"
        config = config_of(folder)
        assert (config.name, config.backend) == (folder.name, "onnxruntime")
        for told, tensors in ((config.input, spec.inputs), (config.output, spec.outputs)):
            shapes = [tuple(one.reshape.shape if one.HasField("reshape") else one.dims) for one in told]
            assert [one.name for one in told] == [one.name for one in tensors]
            assert shapes == [one.shape for one in tensors]
        rows = CUDA_BUCKETS if graph.startswith("step") else CUDA_BUCKETS[:6]
        assert tuple(config.dynamic_batching.preferred_batch_size) == rows
        assert config.max_batch_size == rows[-1]
        assert [one.batch_size for one in config.model_warmup] == list(rows)
        assert config.version_policy.latest.num_versions == 2
        [group] = config.instance_group
        assert (group.count, group.kind) == (2, group.KIND_GPU)
        assert config.parameters["maskbit.bundle.1"].string_value == exported_tiny.ref
        assert config.parameters["maskbit.precision.1"].string_value == "fp16"
        [accelerator] = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert dict(accelerator.parameters) == {"use_tf32": "0"}
        for sample in config.model_warmup:
            for name, one in sample.inputs.items():
                if one.input_data_file:
                    size = (folder / "warmup" / one.input_data_file).stat().st_size
                    assert size == 4 * np.prod(one.dims), name
        graphs = {"encode", "decode"} if graph in ("encode", "decode") else {"step"}
        data = "tokenizer.data" if "encode" in graphs else "generator.fp16.data"
        assert {file.name for file in (folder / "1").iterdir()} == {"model.onnx", data, "version.json"}


def test_text_is_written_as_protobuf_reads_it() -> None:
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    name = 'a "quoted" \\ name\nof two lines: ä 🍎'
    message = {"name": name, "max_batch_size": 3, "model_warmup": [{"name": "x", "batch_size": 2}]}
    config = text_format.Parse(text_of(message), ModelConfig())
    assert config.name == name
    assert config.model_warmup[0].batch_size == 2


def test_versions_that_do_not_go_together_are_refused_and_nothing_is_changed(
    exported_tiny: Bundle, revised_tiny: Bundle, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    write_repository(exported_tiny, repository, PYTHON)
    before = contents(repository)
    with pytest.raises(
        ConfigError, match=r"is of tiny@.* for the backend python, and Triton runs all versions"
    ):
        write_repository(revised_tiny, repository, Choice("onnxruntime", "fp32"))
    (repository / "tiny_step" / "7").mkdir()
    with pytest.raises(ConfigError, match="tiny_step/7 is no version that maskbit wrote"):
        write_repository(revised_tiny, repository, PYTHON)
    assert contents(repository) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_of_other_things_is_no_repository_and_one_of_other_models_is(
    exported_tiny: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(ConfigError, match="holds other things than Triton's models"):
        write_repository(exported_tiny, tmp_path, Choice("python", "fp32"))
    assert [one.name for one in tmp_path.iterdir()] == ["holiday.jpg"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.pbtxt").touch()
    assert write_repository(exported_tiny, tmp_path, Choice("python", "fp32")) == 1


def test_an_export_that_is_cut_off_shows_no_version(
    exported_tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = []

    def failing(source: Path, target: Path) -> None:
        copied.append(target)
        if len(copied) == 3:
            raise OSError(28, "No space left on device")
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr("export.triton_repository.shutil.copyfile", failing)
    with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
        write_repository(exported_tiny, tmp_path, PYTHON)
    assert not list(tmp_path.rglob("config.pbtxt"))
    assert not list(tmp_path.rglob("1/model.py"))
    monkeypatch.undo()
    assert write_repository(exported_tiny, tmp_path, PYTHON) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backend": "tensorflow"}, "backend is 'tensorflow'; allowed are onnxruntime, tensorrt, python"),
        ({"precision": "int8"}, "precision is 'int8'; allowed are auto, fp32, fp16, bf16"),
        ({"device": "cuda"}, "device is 'cuda'; allowed are cpu, gpu"),
        ({"backend": "tensorrt"}, "device is 'cpu'; allowed are gpu"),
        ({"instances": 0}, "instances is 0; allowed are numbers from 1 on"),
    ],
)
def test_a_choice_that_there_is_not_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Choice(**values)


def test_a_bundle_that_was_not_exported_is_told_the_command(tiny_bundle: Bundle, tmp_path: Path) -> None:
    for choice, command in ((PYTHON, "onnx"), (Choice("tensorrt", device="gpu"), "tensorrt")):
        with pytest.raises(RuntimeUnavailable, match=f"run: maskbit export {command} {tiny_bundle.path}"):
            write_repository(tiny_bundle, tmp_path, choice)


def add_plans(bundle: Bundle, place: Place) -> None:
    """Files that pass for TensorRT plans in fp16, which only their GPU could tell."""
    for graph in graph_specs(bundle.manifest):
        path, data = plan_file(bundle, graph, "fp16", place), f"{graph} for {place}".encode()
        rows = (1, 2, 4, 8) if graph.startswith("step") else (1, 2, 4)
        record = PlanRecord(
            bundle.ref,
            "0.1.0",
            graph,
            precision_of(graph, "fp16"),
            place.gpu,
            place.tensorrt,
            rows,
            {},
            hashlib.sha256(data).hexdigest(),
        )
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        record_file(path).write_text(record.to_json())


def test_plans_are_served_in_the_batches_that_they_have_profiles_for(
    revised_tiny: Bundle, tmp_path: Path
) -> None:
    h200, h100 = (Place(f"NVIDIA {name}", "10.15.1.29") for name in ("H200", "H100"))
    add_plans(revised_tiny, h200)
    choice = Choice("tensorrt", device="gpu")
    write_repository(revised_tiny, tmp_path / "first", choice)
    for graph, rows in (("decode", [1, 2, 4]), ("step", [1, 2, 4, 8])):
        config = config_of(tmp_path / "first" / f"tiny_{graph}")
        assert config.backend == "tensorrt"
        assert list(config.dynamic_batching.preferred_batch_size) == rows
        assert list(config.instance_group[0].profile) == [str(k) for k in range(len(rows))]
        assert config.parameters["maskbit.precision.1"].string_value == "fp16"
        plan = tmp_path / "first" / f"tiny_{graph}" / "1" / "model.plan"
        assert plan.read_text() == f"{graph} for {h200}"
    add_plans(revised_tiny, h100)
    with pytest.raises(ConfigError, match=r"plans is None; .* has plans for nvidia-h100.*, nvidia-h200"):
        write_repository(revised_tiny, tmp_path / "second", choice)
    write_repository(revised_tiny, tmp_path / "second", replace(choice, plans=h100.slug, strict=True))
    config = config_of(tmp_path / "second" / "tiny_step")
    assert list(config.dynamic_batching.preferred_batch_size) == [config.max_batch_size] == [4]
    assert list(config.instance_group[0].profile) == ["2"]
    assert (tmp_path / "second/tiny_step/1/model.plan").read_text() == f"step for {h100}"


def test_the_command_says_which_version_of_what_it_wrote(exported_tiny: Bundle, tmp_path: Path) -> None:
    command = ["export", "triton", str(exported_tiny.path), "--out", str(tmp_path), "--backend", "python"]
    for number, more in enumerate(
        (["--precision", "fp16"], ["--device", "gpu", "--instances", "2"]), start=1
    ):
        result = CliRunner().invoke(build_app(["export"]), [*command, *more])
        assert (result.exit_code, result.output) == (
            0,
            f"version {number} of {exported_tiny.ref} in {tmp_path}\n",
        )
    config = config_of(tmp_path / "tiny_step")
    # A GPU is given fp16 where it was exported; the configuration is that of the last export.
    assert {key: one.string_value for key, one in config.parameters.items()} == {
        "maskbit.graph": "step",
        "maskbit.bundle.1": exported_tiny.ref,
        "maskbit.precision.1": "fp16",
        "maskbit.bundle.2": exported_tiny.ref,
        "maskbit.precision.2": "fp16",
    }
    assert config.instance_group[0].count == 2


@pytest.mark.parametrize("name", ["../tiny", "tiny model", "", ".tiny"])
def test_a_bundle_whose_name_is_not_fit_for_a_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"the bundle is called {name!r}; Triton needs a name of letters"):
        model_name(name, "step")
