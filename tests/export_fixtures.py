"""Bundles with exported graphs, made once for all tests that need them. Read them, but do not change them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from models.bundle import BUNDLED, TOKENIZER_WEIGHTS, Bundle, open_bundle


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
def exported_codec(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle without its generator, with its graphs."""
    from safetensors.torch import load_file

    from export.onnx_export import export_onnx
    from models.bundle_writer import write_bundle

    manifest = replace(tiny_bundle.manifest, generator=None, class_names=())
    weights = {TOKENIZER_WEIGHTS: load_file(tiny_bundle.path / TOKENIZER_WEIGHTS)}
    bundle = write_bundle(tmp_path_factory.mktemp("exported") / "codec", manifest, weights)
    export_onnx(bundle)
    return bundle


def copied(source: Path, folder: Path) -> Bundle:
    """The bundle in `source`, copied into `folder` with all that it holds."""
    return open_bundle(str(shutil.copytree(source, folder / source.name)))
