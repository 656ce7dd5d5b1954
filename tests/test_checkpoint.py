import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.checkpoint import fitted, load_into, read_weights
from models.errors import CheckpointError
from models.generator import LfqBert
from models.tokenizer import ConvTokenizer

Weights = dict[str, Tensor]


class Malicious:
    """Its unpickling makes a file, if someone lets it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def weights(tiny_generator: LfqBert) -> Weights:
    return {key: value.clone() for key, value in tiny_generator.state_dict().items()}


def reload(network: LfqBert, file: Path) -> LfqBert:
    """A fresh network with the weights of `file`."""
    fresh = LfqBert(network.config).eval()
    load_into(fresh, read_weights(file), file)
    return fresh


def assert_equal(network: nn.Module, wanted: nn.Module) -> None:
    for key, value in wanted.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt", ".safetensors"])
def test_weights_come_back_from_every_format(
    tmp_path: Path, tiny_generator: LfqBert, weights: Weights, suffix: str
) -> None:
    file = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        save_file(weights, file)
    else:
        torch.save(weights, file, _use_new_zipfile_serialization=suffix != ".ckpt")
    assert_equal(reload(tiny_generator, file), tiny_generator)


@pytest.mark.parametrize("nest", ["state_dict", "model", "model/state_dict", "state_dict/module"])
def test_nested_files_are_unwrapped(
    tmp_path: Path, tiny_generator: LfqBert, weights: Weights, nest: str
) -> None:
    content: dict[str, object] = dict(weights)
    for name in reversed(nest.split("/")):
        content = {name: content, "epoch": 3, "optimizer_name": "AdamW"}
    torch.save(content, tmp_path / "model.ckpt")
    assert_equal(reload(tiny_generator, tmp_path / "model.ckpt"), tiny_generator)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrapper_prefixes_are_dropped(tiny_generator: LfqBert, weights: Weights, prefix: str) -> None:
    fresh = LfqBert(tiny_generator.config)
    load_into(fresh, {prefix + key: value for key, value in weights.items()}, "test")
    assert_equal(fresh, tiny_generator)


def test_published_names_and_buffers_are_understood(tiny_generator: LfqBert, weights: Weights) -> None:
    """Published generators say `token_emb` for `input_proj`, and carry a derivable buffer."""
    published = {key.replace("input_proj.", "token_emb."): value for key, value in weights.items()}
    assert set(published) != set(weights)
    published["bits_to_indices"] = torch.tensor([1, 2, 4])
    fresh = LfqBert(tiny_generator.config)
    load_into(fresh, {f"module.{key}": value for key, value in published.items()}, "test")
    assert_equal(fresh, tiny_generator)


def test_the_tokenizers_derivable_buffers_are_ignored(tiny_tokenizer: ConvTokenizer) -> None:
    weights = dict(tiny_tokenizer.state_dict())
    weights["quantize.bits_to_indices"] = 2 ** torch.arange(6)
    weights["quantize.codebook"] = torch.zeros(64, 6)
    load_into(ConvTokenizer(tiny_tokenizer.config), weights, "test")


def test_the_loss_networks_of_taming_checkpoints_are_left_out(
    tiny_tokenizer: ConvTokenizer,
) -> None:
    extra = {"loss.perceptual_loss.net.slice1.0.weight": torch.full((2,), torch.nan)}
    fresh = ConvTokenizer(tiny_tokenizer.config)
    load_into(fresh, {**tiny_tokenizer.state_dict(), **extra}, "test")
    assert_equal(fresh, tiny_tokenizer)
    with pytest.raises(CheckpointError, match=r"unexpected losses\.weight"):
        load_into(fresh, {**tiny_tokenizer.state_dict(), "losses.weight": torch.zeros(1)}, "test")


def test_weights_are_fitted_without_memory_for_the_network(tiny_generator: LfqBert, weights: Weights) -> None:
    with torch.device("meta"):
        network = LfqBert(tiny_generator.config)
    published = {key.replace("input_proj.", "token_emb."): value for key, value in weights.items()}
    assert fitted(network, published, "test").keys() == weights.keys()
    with pytest.raises(CheckpointError, match="missing pos_emb"):
        fitted(network, {key: value for key, value in published.items() if key != "pos_emb"}, "test")


def test_half_precision_files_become_fp32(tmp_path: Path, weights: Weights) -> None:
    save_file({key: value.half() for key, value in weights.items()}, tmp_path / "model.safetensors")
    assert {value.dtype for value in read_weights(tmp_path / "model.safetensors").values()} == {torch.float32}


def test_every_kind_of_misfit_is_named_in_one_message(tiny_generator: LfqBert, weights: Weights) -> None:
    del weights["class_emb.weight"]
    weights["pos_emb"] = weights["pos_emb"][:, 1:]
    weights["prediction_layer.bias"][3] = torch.nan
    weights["last_layer.0.bias"][0] = torch.inf
    weights["stranger.weight"] = torch.zeros(2)
    before = {key: value.clone() for key, value in tiny_generator.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_into(tiny_generator, weights, "model.bin")
    assert str(caught.value).startswith("model.bin does not fit")
    for part in (
        "missing class_emb.weight",
        "unexpected stranger.weight",
        "mis-shaped pos_emb (1, 64, 32) instead of (1, 65, 32)",
        "not finite last_layer.0.bias, prediction_layer.bias",
    ):
        assert part in str(caught.value)
    for key, value in tiny_generator.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} changed although the weights were refused"


def test_a_message_stays_short_when_everything_is_wrong(tiny_generator: LfqBert) -> None:
    with pytest.raises(CheckpointError, match=r"and \d+ more") as caught:
        load_into(tiny_generator, {f"key{i}": torch.zeros(1) for i in range(1000)}, "test")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(tmp_path: Path, legacy: bool) -> None:
    mark = tmp_path / "it-ran"
    content = {"a.weight": torch.zeros(2), "b.weight": Malicious(mark)}
    torch.save(content, tmp_path / "model.bin", _use_new_zipfile_serialization=not legacy)
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(content["b.weight"], protocol=2))
    for name in ("model.bin", "plain.bin"):
        with pytest.raises(CheckpointError, match="could run code") as caught:
            read_weights(tmp_path / name)
        assert "weights_only" not in str(caught.value)
    assert not mark.exists()
    pickle.loads((tmp_path / "plain.bin").read_bytes())
    assert mark.exists()


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".safetensors"])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, suffix: str) -> None:
    whole, part = tmp_path / f"whole{suffix}", tmp_path / f"part{suffix}"
    tensors = {"a.weight": torch.ones(7, 5), "b": torch.arange(40)}
    if suffix == ".safetensors":
        save_file(tensors, whole)
    else:
        torch.save(tensors, whole, _use_new_zipfile_serialization=suffix == ".bin")
    data = whole.read_bytes()
    for size in range(0, len(data), 7):
        part.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=part.name):
            read_weights(part)


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("data", [b"", b"hello world, this is text", b"\x80\x04.", b"PK\x03\x04" + bytes(60)])
def test_what_is_no_weights_file_is_refused(tmp_path: Path, data: bytes, suffix: str) -> None:
    file = tmp_path / f"model{suffix}"
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=file.name):
        read_weights(file)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for name in ("none.bin", "none.safetensors"):
        with pytest.raises(CheckpointError, match=rf"{name}: no such file"):
            read_weights(tmp_path / name)
    with pytest.raises(CheckpointError, match="not a readable weights file"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "got list"),
        ({}, "got dict"),
        ({"a": torch.zeros(1), "epoch": 3, "name": "x"}, "epoch, name are not tensors"),
        ({"state_dict": {"a": {"b": torch.zeros(1)}}}, "a are not tensors"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match=message):
        read_weights(tmp_path / "model.bin")
