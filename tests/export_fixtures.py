"""Bundles with exported graphs, made once for all tests that need them. Read them, but do not change them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from models.bundle import BUNDLED, TOKENIZER_WEIGHTS, Bundle, file_digest, open_bundle


@pytest.fixture(scope="session")
def exported_fruit(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundled model with graphs in fp32 and fp16."""
    from export.onnx_export import export_onnx

    bundle = copied(BUNDLED / "fruit", tmp_path_factory.mktemp("exported"))
    export_onnx(bundle, ["fp32", "fp16"])
    return bundle


@pytest.fixture(scope="session")
def exported_tiny(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle with graphs in all precisions."""
    from export.onnx_export import export_onnx
    from models.exported import PRECISIONS

    bundle = copied(tiny_bundle.path, tmp_path_factory.mktemp("exported"))
    export_onnx(bundle, PRECISIONS)
    return bundle


@pytest.fixture(scope="session")
def exported_codec(exported_tiny: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle without its generator, with the graphs of its tokenizer under another name."""
    import onnx
    from safetensors.torch import load_file

    from models.bundle_writer import write_bundle
    from models.exported import FOLDER, RECORD, TOKENIZER_DATA, graph_file, read_record, tokenizer_files
    from models.signature import TOKENIZER_GRAPHS

    manifest = replace(exported_tiny.manifest, generator=None, class_names=())
    weights = {TOKENIZER_WEIGHTS: load_file(exported_tiny.path / TOKENIZER_WEIGHTS)}
    bundle = write_bundle(tmp_path_factory.mktemp("exported") / "codec", manifest, weights)
    record = read_record(exported_tiny)
    assert record is not None
    source, folder = exported_tiny.path / FOLDER, bundle.path / FOLDER
    folder.mkdir()
    shutil.copyfile(source / TOKENIZER_DATA, folder / TOKENIZER_DATA)
    for graph in TOKENIZER_GRAPHS:
        name = graph_file(graph, "fp32")
        model = onnx.load(source / name, load_external_data=False)
        told = {one.key: one.value for one in model.metadata_props} | {"maskbit.bundle": bundle.ref}
        onnx.helper.set_model_props(model, told)
        onnx.save(model, folder / name)
    files = {name: file_digest(folder / name) for name in tokenizer_files()}
    own = replace(record, bundle=bundle.ref, precisions=(), files=files)
    (folder / RECORD).write_text(own.to_json())
    return bundle


def copied(source: Path, folder: Path) -> Bundle:
    """The bundle in `source`, copied into `folder` with all that it holds."""
    return open_bundle(str(shutil.copytree(source, folder / source.name)))
