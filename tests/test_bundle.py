import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models import bundle as bundle_module
from models.bundle import (
    GENERATOR_WEIGHTS,
    MANIFEST,
    TOKENIZER_WEIGHTS,
    Bundle,
    Manifest,
    bundled_names,
    open_bundle,
)
from models.bundle_writer import write_bundle
from models.config import GeneratorConfig, TokenizerConfig
from models.errors import BundleError, ConfigError, MaskBitError
from models.runtime.torch_runtime import TorchRuntime
from models.sampling_config import SamplingConfig

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle folder to damage."""
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "copy"))


def edit_manifest(folder: Path, edit: Edit) -> None:
    values = json.loads((folder / MANIFEST).read_text())
    edit(values)
    (folder / MANIFEST).write_text(json.dumps(values))


def flip_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def test_a_bundle_comes_back_as_it_was_written(tiny_bundle: Bundle) -> None:
    opened = open_bundle(str(tiny_bundle.path))
    assert opened.manifest == tiny_bundle.manifest
    assert opened.ref == tiny_bundle.ref
    assert set(opened.manifest.files) == {TOKENIZER_WEIGHTS, GENERATOR_WEIGHTS}
    assert opened.manifest.grid == 8
    for name in opened.manifest.files:
        assert opened.weights_file(name) == tiny_bundle.path / name


def test_the_revision_changes_with_the_weights(tiny_bundle: Bundle, tmp_path: Path) -> None:
    weights = {name: load_file(tiny_bundle.path / name) for name in tiny_bundle.manifest.files}
    same = write_bundle(tmp_path / "same", tiny_bundle.manifest, weights)
    assert same.revision == tiny_bundle.revision
    weights[TOKENIZER_WEIGHTS]["encoder.conv_out.bias"] += 1e-3
    other = write_bundle(tmp_path / "other", tiny_bundle.manifest, weights)
    assert other.revision != tiny_bundle.revision
    assert other.ref == f"tiny@{other.revision}"


def test_half_precision_halves_the_files(tiny_bundle: Bundle, tmp_path: Path) -> None:
    weights = {name: load_file(tiny_bundle.path / name) for name in tiny_bundle.manifest.files}
    half = write_bundle(tmp_path / "half", tiny_bundle.manifest, weights, "fp16")
    file = half.weights_file(GENERATOR_WEIGHTS)
    assert {value.dtype for value in load_file(file).values()} == {torch.float16}
    assert file.stat().st_size < 0.6 * tiny_bundle.weights_file(GENERATOR_WEIGHTS).stat().st_size
    TorchRuntime(half, device="cpu").warm_up()


def test_writing_replaces_a_bundle_but_nothing_else(tiny_bundle: Bundle, tmp_path: Path) -> None:
    weights = {name: load_file(tiny_bundle.path / name) for name in tiny_bundle.manifest.files}
    target = tmp_path / "new" / "model"
    write_bundle(target, tiny_bundle.manifest, weights)
    (target / "leftover").touch()
    write_bundle(target, replace(tiny_bundle.manifest, name="second"), weights)
    assert open_bundle(str(target)).manifest.name == "second"
    assert sorted(path.name for path in target.parent.iterdir()) == ["model"]
    assert sorted(path.name for path in target.iterdir()) == sorted([MANIFEST, *weights])
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("keep me")
    (tmp_path / "file").write_text("keep me")
    for name in ("letters", "file"):
        with pytest.raises(BundleError, match="is no bundle"):
            write_bundle(tmp_path / name, tiny_bundle.manifest, weights)
    assert (tmp_path / "letters" / "dear.txt").read_text() == (tmp_path / "file").read_text() == "keep me"


@pytest.mark.parametrize("name", [TOKENIZER_WEIGHTS, GENERATOR_WEIGHTS])
def test_damaged_weights_are_refused_with_both_digests(copy: Path, name: str) -> None:
    flip_bit(copy / name)
    with pytest.raises(BundleError, match=rf"{name} is damaged: its SHA-256 is \w{{64}}, .* says \w{{64}}"):
        TorchRuntime(open_bundle(str(copy)), device="cpu")


def test_a_truncated_and_a_missing_file_are_refused(copy: Path) -> None:
    (copy / GENERATOR_WEIGHTS).write_bytes((copy / GENERATOR_WEIGHTS).read_bytes()[:-1])
    with pytest.raises(BundleError, match="damaged"):
        open_bundle(str(copy)).weights_file(GENERATOR_WEIGHTS)
    (copy / GENERATOR_WEIGHTS).unlink()
    with pytest.raises(BundleError, match=rf"{GENERATOR_WEIGHTS} cannot be read: No such file"):
        open_bundle(str(copy)).weights_file(GENERATOR_WEIGHTS)


def test_a_wrong_digest_in_the_manifest_is_refused(copy: Path) -> None:
    edit_manifest(copy, lambda values: values["files"].update({TOKENIZER_WEIGHTS: "0" * 64}))
    with pytest.raises(BundleError, match="the manifest says 0000"):
        open_bundle(str(copy)).weights_file(TOKENIZER_WEIGHTS)


def test_a_file_that_the_manifest_does_not_list_is_not_read(copy: Path) -> None:
    edit_manifest(copy, lambda values: values["files"].pop(TOKENIZER_WEIGHTS))
    with pytest.raises(BundleError, match=rf"has no {TOKENIZER_WEIGHTS}; it holds {GENERATOR_WEIGHTS}"):
        open_bundle(str(copy)).weights_file(TOKENIZER_WEIGHTS)


def test_weights_of_another_network_are_refused_by_name(copy: Path) -> None:
    edit_manifest(copy, lambda values: values["generator"].update(depth=3))
    with pytest.raises(MaskBitError, match=r"missing transformer\.layers\.2"):
        TorchRuntime(open_bundle(str(copy)), device="cpu")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "onnx/../../secret", "..", "", ".", "a\\..\\..\\b", "onnx/.."]
)
def test_files_outside_the_bundle_cannot_be_listed(copy: Path, name: str) -> None:
    edit_manifest(copy, lambda values: values["files"].update({name: "0" * 64}))
    with pytest.raises(BundleError, match="only paths inside the bundle"):
        open_bundle(str(copy))


def test_files_in_folders_of_the_bundle_can_be_listed(copy: Path) -> None:
    edit_manifest(copy, lambda values: values["files"].update({"onnx/step.onnx": "0" * 64}))
    assert "onnx/step.onnx" in open_bundle(str(copy)).manifest.files


def changed(part: str | None, **changes: Any) -> Edit:
    """An edit of the manifest or of one of its parts."""
    return lambda values: (values if part is None else values[part]).update(changes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (changed(None, format_version=2), "format_version is 2; this version reads 1"),
        (changed(None, format_version="1"), "format_version is '1'"),
        (lambda values: values.pop("format_version"), "format_version is None"),
        (changed(None, extra=1, also=2), "unknown also, extra; allowed are .*licence"),
        (lambda values: values.pop("licence"), "licence"),
        (changed("tokenizer", tokensize=6), "TokenizerConfig: unknown tokensize"),
        (changed("generator", hidden=6), "GeneratorConfig: unknown hidden"),
        (changed("sampling", cfg=6), "SamplingConfig: unknown cfg"),
        (changed("sampling", steps=0), "steps is 0"),
        (changed("generator", bits=8), "draws 8 bits a token, tokenizer has 64 codes"),
        (changed("tokenizer", token_size=7), "draws 6 bits a token, tokenizer has 128 codes"),
        (changed("tokenizer", quantizer_type="lookup", codebook_size=50), "tokenizer has 50 codes"),
        (changed("generator", img_size=32), "generator is for 32 pixels at stride 2, the bundle for 16 at 2"),
        (changed("generator", input_stride=4), "at stride 4"),
        (changed("generator", nclass=6), "5 class names for 6 classes"),
        (changed(None, image_size=17), "image_size is 17"),
        (changed(None, image_size=0), "image_size is 0"),
        (changed(None, image_size=-16), "image_size is -16"),
        (changed(None, image_size="16"), "image_size is '16'"),
        (changed(None, name=None), "name is 'None'"),
        (changed(None, tokenizer=None), "tokenizer is"),
        (changed(None, tokenizer="vqgan+"), "tokenizer is"),
        (changed(None, generator=[1]), "generator is"),
        (changed(None, sampling=3), "sampling is"),
        (changed(None, class_names="apple"), "class_names is"),
        (changed(None, class_names=[1, 2, 3, 4, 5]), "class_names is"),
        (changed(None, files=["a"]), "files is"),
        (changed(None, files={"a": 1}), "files is"),
        (changed(None, provenance=7), "provenance is"),
    ],
)
def test_a_manifest_that_is_not_sound_is_refused(copy: Path, edit: Edit, message: str) -> None:
    edit_manifest(copy, edit)
    with pytest.raises(BundleError, match=rf"bundle\.json: .*{message}"):
        open_bundle(str(copy))


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"7", b'{"format_version": 1}', b"[" * 100_000]
)
def test_a_manifest_that_cannot_be_parsed_is_refused(copy: Path, text: bytes) -> None:
    (copy / MANIFEST).write_bytes(text)
    with pytest.raises(BundleError, match=r"bundle\.json: "):
        open_bundle(str(copy))


def test_a_manifest_is_checked_when_it_is_built_too(tiny_manifest: Manifest) -> None:
    with pytest.raises(ConfigError, match="class names"):
        replace(tiny_manifest, class_names=("one",))
    assert tiny_manifest.generator is not None
    with pytest.raises(ConfigError, match="draws 4 bits"):
        replace(tiny_manifest, generator=replace(tiny_manifest.generator, bits=4))


def test_a_lookup_tokenizer_fits_a_generator_of_its_codes() -> None:
    tokenizer = TokenizerConfig(quantizer_type="lookup", codebook_size=1024, token_size=256)
    manifest = Manifest(
        name="vq",
        image_size=256,
        tokenizer=tokenizer,
        generator=GeneratorConfig(bits=10, nclass=1),
        sampling=SamplingConfig(),
        class_names=("cat",),
        licence="none",
    )
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize(
    "ref", ["no-such-model", "/no/such/folder", "~nobody-knows-this-user/x", "a\0b", "x" * 5000]
)
def test_a_wrong_name_lists_the_bundled_models(
    ref: str, tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pear", "plum"):
        shutil.copytree(tiny_bundle.path, tmp_path / name)
    monkeypatch.setattr(bundle_module, "BUNDLED", tmp_path)
    assert bundled_names() == ["pear", "plum"]
    assert open_bundle("plum").path == tmp_path / "plum"
    with pytest.raises(BundleError, match=r"pear, plum"):
        open_bundle(ref)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no readable bundle\.json: No such file"):
        open_bundle(str(tmp_path))


def test_a_malformed_hub_name_is_refused_before_any_connection() -> None:
    with pytest.raises(BundleError, match=r"hf://a/b/c cannot be loaded from the Hub"):
        open_bundle("hf://a/b/c")


def test_every_bundled_model_can_be_opened_and_its_weights_are_whole() -> None:
    for name in bundled_names():
        bundle = open_bundle(name)
        assert bundle.manifest.name == name
        for file in bundle.manifest.files:
            bundle.weights_file(file)
