"""`maskbit import`: published files become bundles whose networks compute the golden numbers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from maskbit_cli import build_app
from models.bundle import MANIFEST, open_bundle
from models.classes import imagenet_names
from models.config import GeneratorConfig, TokenizerConfig
from models.errors import ConfigError, MaskBitError
from models.importer import import_model, read_published
from models.networks import build_tokenizer
from models.published import PublishedModel
from models.runtime.torch_runtime import TorchRuntime
from models.sampling_config import SamplingConfig
from tests.golden_weights import make_weights
from tests.test_parity import CASES, SEED, assert_close, read_case

TOKENIZER, GENERATOR = "tokenizer_lfq12", "generator_lfq_12bit_2split"

# Interpolations, digit groups and exponents are written as in the published files.
CONFIG = """
experiment:
    name: "golden"
    max_train_examples: 1_281_167
    vqgan_checkpoint: "MODEL_PATH/golden.bin"
model:
    vq_model:
        model_class: "vqgan+"
        quantizer_type: "lookup-free"
        codebook_size: 4096
        token_size: 12
        hidden_channels: 32
        channel_mult: [1,1,2,2,4]
        num_resolutions: 5
        num_res_blocks: 2
        sample_with_conv: True
    mlm_model:
        model_cls: "lfq_bert"
        hidden_dim: 64
        depth: 3
        heads: 4
        mlp_dim: 256
        dropout: 0.1
        guidance_scale: 6.4
        num_steps: 8
        scale_pow: 2.5
        codebook_splits: 2
        use_prenorm: False
        class_label_dropout: 0.1
dataset:
    preprocessing:
        resolution: 64
optimizer:
    params:
        learning_rate: 1e-4
lr_scheduler:
    params:
        learning_rate: ${optimizer.params.learning_rate}
"""


def maskbit(*arguments: object) -> None:
    """A command in this process; its foreseen errors come through."""
    app = build_app(["import", "inspect", "tokenize", "detokenize", "generate"])
    app([str(argument) for argument in arguments], standalone_mode=False, prog_name="maskbit")


def tensors(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in make_weights(shapes, SEED).items()}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a published-looking YAML file and two weights files with their buffers."""
    (tmp_path / "golden.yaml").write_text(CONFIG)
    tokenizer = tensors(CASES[TOKENIZER]["parameters"])
    buffers = {key: torch.zeros(shape) for key, shape in CASES[TOKENIZER]["buffers"].items()}
    assert buffers
    torch.save({**tokenizer, **buffers}, tmp_path / "tokenizer.bin")
    generator = tensors(CASES[GENERATOR]["parameters"])
    published = {key.replace("input_proj", "token_emb"): value for key, value in generator.items()}
    torch.save(published, tmp_path / "generator.bin")
    return tmp_path


def inputs(files: Path) -> tuple[object, ...]:
    return (
        "--config",
        files / "golden.yaml",
        "--tokenizer",
        files / "tokenizer.bin",
        "--generator",
        files / "generator.bin",
    )


def test_an_imported_model_computes_the_golden_numbers(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = files / "deep" / "imported"
    maskbit("import", *inputs(files), "--out", out, "--licence", "research only")
    bundle = open_bundle(str(out))
    assert f"{bundle.ref} in {out}: tokenizer and generator" in capsys.readouterr().out
    manifest = bundle.manifest
    assert manifest.sampling == SamplingConfig(steps=8, guidance_scale=6.4, guidance_pow=2.5)
    assert (manifest.name, manifest.licence) == ("imported", "research only")
    assert manifest.class_names == imagenet_names()

    runtime = TorchRuntime(bundle, device="cpu")
    tokens, logits = read_case(TOKENIZER), read_case(GENERATOR)
    assert runtime.generator is not None
    with torch.no_grad():
        assert np.array_equal(runtime.tokenizer.encode(tokens.tensor("images")).indices, tokens("indices"))
        labels = torch.where(logits.tensor("drop_label"), 1000, logits.tensor("labels"))
        assert_close(runtime.generator(logits.tensor("tokens"), labels), logits("logits"), "logits")

    maskbit("inspect", out)
    shown = capsys.readouterr().out
    for words in ("vqgan+, lookup-free", "lfq_bert, 3 layers of width 64", "tokenizer.bin", "digests agree"):
        assert words in shown


def test_a_class_is_drawn_by_its_imagenet_name(files: Path) -> None:
    maskbit("import", *inputs(files), "--out", files / "model")
    arguments = ("--class", "golden retriever", "--seed", 1, "--out", files / "pictures")
    maskbit("generate", *arguments, "--bundle", files / "model", "--device", "cpu")
    with Image.open(files / "pictures" / "golden retriever-1.png") as picture:
        assert picture.size == (64, 64)


def lightning_checkpoint(weights: dict[str, Tensor], path: Path) -> None:
    """A file as Lightning wrote it: nested, with the loss network, and a class of its own as a key."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": name})
    content = {
        "epoch": 40,
        "callbacks": {callback: {"best_model_score": torch.tensor(0.5), "best_model_path": "x.ckpt"}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
        "state_dict": {**weights, "loss.discriminator.main.0.weight": torch.zeros(4)},
    }
    package, folder, module = (ModuleType(".".join(name.split(".")[:depth])) for depth in (1, 2, 3))
    vars(module)["ModelCheckpoint"] = callback
    with pytest.MonkeyPatch.context() as patch:
        for one in (package, folder, module):
            patch.setitem(sys.modules, one.__name__, one)
        torch.save(content, path)


SMALL = {"hidden_channels": 32, "channel_mult": [1, 2], "num_resolutions": 2, "num_res_blocks": 1}


@pytest.mark.parametrize("model_class", ["taming", "maskgit"])
def test_a_tokenizer_of_another_family_tokenizes_and_detokenizes(
    tmp_path: Path, model_class: str, capsys: pytest.CaptureFixture[str]
) -> None:
    vq_model = {"model_class": model_class, "quantizer_type": "lookup", "codebook_size": 32, "token_size": 8}
    sections: dict[str, Any] = {"model": {"vq_model": {**vq_model, **SMALL, "sample_with_conv": False}}}
    sections["dataset"] = {"preprocessing": {"resolution": 32}}
    # JSON is YAML too.
    (tmp_path / "small.yaml").write_text(json.dumps(sections))
    config = TokenizerConfig(**{**sections["model"]["vq_model"], "channel_mult": (1, 2)})
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in build_tokenizer(config).state_dict().items()}
    lightning_checkpoint(tensors(shapes), tmp_path / "last.ckpt")
    out = tmp_path / "bundle"
    maskbit(
        "import", "--config", tmp_path / "small.yaml", "--tokenizer", tmp_path / "last.ckpt", "--out", out
    )
    maskbit("inspect", out)
    assert f"{model_class}, lookup" in capsys.readouterr().out

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    bundle = ("--bundle", out, "--device", "cpu")
    maskbit("tokenize", tmp_path / "in.png", "--out", tmp_path / "tokens.json", *bundle)
    maskbit("detokenize", tmp_path / "tokens.json", "--out", tmp_path / "out.png", *bundle)
    indices = np.array(json.loads((tmp_path / "tokens.json").read_text())["indices"])
    runtime = TorchRuntime(open_bundle(str(out)), device="cpu")
    assert np.array_equal(runtime.encode(pixels[None])[0], indices)
    assert len(np.unique(indices)) > 1
    with Image.open(tmp_path / "out.png") as picture:
        assert np.array_equal(np.asarray(picture), runtime.decode(indices[None])[0])


def test_a_published_size_is_imported_by_its_preset(tmp_path: Path) -> None:
    """Taming-VQGAN, the largest tokenizer: a file of broadcast ones stands for its 300 MB."""
    shapes = CASES["tokenizer_taming"]["parameters"]
    torch.save({key: torch.ones(()).expand(shape) for key, shape in shapes.items()}, tmp_path / "last.ckpt")
    maskbit(
        "import",
        *("--preset", "taming_vqgan_tokenizer", "--tokenizer", tmp_path / "last.ckpt"),
        *("--out", tmp_path / "bundle", "--precision", "fp16"),
    )
    bundle = open_bundle(str(tmp_path / "bundle"))
    assert bundle.manifest.generator is None
    assert (bundle.manifest.image_size, bundle.manifest.grid, bundle.manifest.tokenizer.bits) == (256, 16, 10)
    size = sum(np.prod(shape) for shape in shapes.values()) * 2
    assert size < bundle.weights_file("tokenizer.safetensors").stat().st_size < 1.01 * size


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--config": None}, "either --preset or --config"),
        ({"--preset": "maskbit_generator_12bit"}, "either --preset or --config"),
        ({"--config": None, "--preset": "maskbit_generator_13bit"}, "did you mean maskbit_generator_1"),
        ({"--config": None, "--preset": "maskgit_tokenizer"}, "maskgit_tokenizer describes no generator"),
        ({"--config": None, "--preset": "maskbit_generator_12bit"}, "mis-shaped encoder.conv_in.weight"),
        ({"--config": "nowhere.yaml"}, "nowhere.yaml cannot be read: No such file"),
        ({"--config": "."}, "cannot be read: Is a directory"),
        ({"--config": "tokenizer.bin"}, "tokenizer.bin: not a configuration"),
        ({"--config": "broken.yaml"}, "broken.yaml: not a configuration"),
        ({"--config": "list.yaml"}, "list.yaml: a configuration is a mapping"),
        ({"--config": "typo.yaml"}, "typo.yaml: TokenizerConfig: unknown token_sise"),
        ({"--tokenizer": "generator.bin"}, "generator.bin does not fit the network: missing encoder"),
        ({"--generator": "tokenizer.bin"}, "unexpected encoder.conv_in.weight"),
        ({"--tokenizer": "nowhere.bin"}, "nowhere.bin: no such file"),
        ({"--generator": "golden.yaml"}, "golden.yaml"),
        ({"--classes": "three.json"}, "3 class names for 1000 classes"),
        ({"--classes": "nowhere.json"}, "nowhere.json cannot be read"),
        ({"--precision": "int8"}, "allowed are fp32, fp16, bf16"),
    ],
)
def test_what_cannot_be_imported_is_told_and_writes_nothing(
    files: Path, changes: dict[str, str | None], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    Path("broken.yaml").write_text("a: ${missing.key}")
    Path("list.yaml").write_text("[1, 2]")
    Path("typo.yaml").write_text(CONFIG.replace("token_size", "token_sise"))
    Path("three.json").write_text('["a", "b", "c"]')
    arguments: dict[str, object] = dict(zip(inputs(files)[::2], inputs(files)[1::2], strict=True))  # type: ignore[arg-type]
    arguments.update(changes)
    with pytest.raises(MaskBitError) as caught:
        maskbit(
            "import",
            *(part for pair in arguments.items() if pair[1] is not None for part in pair),
            *("--out", "imported"),
        )
    assert words in str(caught.value)
    assert not Path("imported").exists()


def test_an_existing_folder_is_left_alone(files: Path) -> None:
    for name in ("golden.yaml", "."):
        with pytest.raises(MaskBitError, match="exists; give an empty or a new folder"):
            maskbit("import", *inputs(files), "--out", files / name)
    (files / "empty").mkdir()
    maskbit("import", *inputs(files), "--out", files / "empty")
    before = (files / "empty" / MANIFEST).read_bytes()
    with pytest.raises(MaskBitError, match="exists"):
        maskbit("import", *inputs(files), "--out", files / "empty", "--precision", "fp16")
    assert (files / "empty" / MANIFEST).read_bytes() == before


def test_weights_beyond_the_wanted_precision_are_refused(files: Path) -> None:
    weights = tensors(CASES[TOKENIZER]["parameters"])
    weights["decoder.conv_out.bias"][0] = 1e6
    save_file(weights, files / "large.safetensors")
    tokenizer = ("--config", files / "golden.yaml", "--tokenizer", files / "large.safetensors")
    with pytest.raises(MaskBitError, match=r"decoder.conv_out.bias holds values that fp16 cannot store"):
        maskbit("import", *tokenizer, "--out", files / "half", "--precision", "fp16")
    maskbit("import", *tokenizer, "--out", files / "half", "--precision", "bf16")


def test_classes_other_than_those_of_imagenet_must_be_named(files: Path) -> None:
    shapes = CASES["generator_lfq_18bit_3split"]["parameters"]
    config = CASES["generator_lfq_18bit_3split"]["config"]
    save_file(tensors(shapes), files / "generator.safetensors")
    with torch.device("meta"):
        tokenizer = TokenizerConfig(token_size=18, hidden_channels=32)
        network = build_tokenizer(tokenizer)
    save_file(
        tensors({key: tuple(value.shape) for key, value in network.state_dict().items()}),
        files / "tokenizer.safetensors",
    )
    model = PublishedModel("ten", tokenizer, GeneratorConfig(**config), image_size=64)
    weights = (files / "tokenizer.safetensors", files / "generator.safetensors")
    with pytest.raises(ConfigError, match="10 classes; name them"):
        import_model(model, files / "ten", *weights)
    (files / "classes.json").write_text(json.dumps({str(label): f"class {label}" for label in range(10)}))
    bundle = import_model(model, files / "ten", *weights, classes=files / "classes.json")
    assert bundle.manifest.class_names[9] == "class 9"


def test_yaml_without_its_package_is_told_and_a_preset_needs_none(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "omegaconf", None)
    with pytest.raises(ConfigError, match=r"OmegaConf \(pip install 'maskbit-serve\[train\]'\)"):
        read_published(files / "golden.yaml")
    with pytest.raises(MaskBitError, match="mis-shaped"):
        maskbit(
            "import",
            *("--preset", "maskbit_tokenizer_12bit", "--tokenizer", files / "tokenizer.bin"),
            *("--out", files / "out"),
        )
