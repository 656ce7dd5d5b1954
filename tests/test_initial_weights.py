from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.bundle import GENERATOR_WEIGHTS, TOKENIZER_WEIGHTS, Bundle
from models.config import GeneratorConfig, TokenizerConfig
from models.errors import BundleError, CheckpointError, ConfigError
from models.networks import build_generator, build_tokenizer
from tests.training_runs import recipe_of
from training.checkpoints import RunState, save_checkpoint
from training.ema import Ema
from training.initial_weights import load_initial_weights
from training.processes import processes
from training.recipe import TokenizerRecipe


def weights_of(source: str, bundle: Bundle, file: str = TOKENIZER_WEIGHTS) -> nn.Module:
    assert bundle.manifest.generator is not None
    if file == TOKENIZER_WEIGHTS:
        return load(build_tokenizer(bundle.manifest.tokenizer), bundle.manifest.tokenizer, source, file)
    return load(build_generator(bundle.manifest.generator), bundle.manifest.generator, source, file)


def load(network: nn.Module, config: TokenizerConfig | GeneratorConfig, source: str, file: str) -> nn.Module:
    load_initial_weights(network, config, source, file)
    return network


def same(network: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in network.state_dict().items())


def test_a_bundle_gives_its_tokenizer_or_its_generator(
    tiny_bundle: Bundle, tiny_tokenizer: nn.Module, tiny_generator: nn.Module
) -> None:
    path = str(tiny_bundle.path)
    assert same(weights_of(path, tiny_bundle), tiny_tokenizer)
    assert same(weights_of(path, tiny_bundle, GENERATOR_WEIGHTS), tiny_generator)


@pytest.mark.parametrize("name", ["weights.bin", "weights.safetensors"])
def test_a_file_of_weights_is_read_in_both_formats(
    tiny_bundle: Bundle, tiny_tokenizer: nn.Module, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(tiny_tokenizer.state_dict(), path)
    assert same(weights_of(str(path), tiny_bundle), tiny_tokenizer)


def test_a_run_gives_the_average_of_its_newest_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("tokenizer", tmp_path, tmp_path)
    assert isinstance(recipe, TokenizerRecipe)
    recipe.folder.mkdir()
    averages = [build_tokenizer(recipe.model) for _ in range(2)]
    with processes(recipe.training) as accelerator:
        for step, average in enumerate(averages, 1):
            state = RunState({"tokenizer": build_tokenizer(recipe.model)}, {}, Ema(average, 0.9), step)
            save_checkpoint(recipe, state, accelerator)

    def loaded(source: str) -> nn.Module:
        return load(build_tokenizer(recipe.model), recipe.model, source, TOKENIZER_WEIGHTS)

    newest = recipe.folder / "checkpoint-00000002.pt"
    assert same(loaded(str(recipe.folder)), averages[1])
    assert same(loaded(str(newest)), averages[1])
    assert same(loaded(str(newest.with_name("checkpoint-00000001.pt"))), averages[0])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert same(loaded("~/run"), averages[1])


def test_no_source_leaves_the_network_alone() -> None:
    network = nn.Linear(1, 1)
    before = network.weight.item()
    load_initial_weights(network, TokenizerConfig(), "", TOKENIZER_WEIGHTS)
    assert network.weight.item() == before


def test_what_cannot_be_read_or_does_not_fit_is_named(
    tiny_bundle: Bundle, tiny_generator: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="nowhere"):
        weights_of("nowhere", tiny_bundle)
    with pytest.raises(CheckpointError, match=r"checkpoint-00000009\.pt"):
        weights_of(str(tmp_path / "checkpoint-00000009.pt"), tiny_bundle)
    torch.save(tiny_generator.state_dict(), tmp_path / "generator.bin")
    with pytest.raises(CheckpointError, match="missing"):
        weights_of(str(tmp_path / "generator.bin"), tiny_bundle)


def test_another_configuration_is_refused_though_all_shapes_fit(tiny_bundle: Bundle) -> None:
    config = tiny_bundle.manifest.tokenizer
    other = replace(config, norm_groups=config.norm_groups // 2)
    network = build_tokenizer(other)
    network.load_state_dict(build_tokenizer(config).state_dict())  # shapes do not tell them apart
    with pytest.raises(ConfigError, match=f"norm_groups {config.norm_groups}; the recipe says"):
        load(network, other, str(tiny_bundle.path), TOKENIZER_WEIGHTS)
    load(network, replace(config, entropy_loss_weight=9.0), str(tiny_bundle.path), TOKENIZER_WEIGHTS)
