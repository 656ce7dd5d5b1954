from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from models.errors import ConfigError
from models.tokenizer import ConvTokenizer
from tests.training_fixtures import picture_bytes, recipe_values, write_tar
from training.checkpoints import checkpoint_files, load_checkpoint
from training.data.loading import evaluation_batches
from training.recipe import TokenizerRecipe
from training.recipe_file import build_recipe
from training.tokenizer_flops import discriminator_flops, tokenizer_flops
from training.tokenizer_loop import discriminator_rate, train_tokenizer
from training.tokenizer_state import TOKENIZER, start_state, tokenizer_of

PATCH_GAN = {"name": "Original", "hidden_channels": 8, "num_stages": 2}
ADVERSARIAL = {"model__discriminator": PATCH_GAN, "losses__discriminator_start": 2}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for split, count in (("train", 12), ("val", 5)):
        files = [
            (f"{number:04d}.{kind}", data)
            for number in range(count)
            for kind, data in (("png", picture_bytes(number)), ("cls", str(number % 3).encode()))
        ]
        write_tar(folder / f"{split}-000.tar", files)
    return folder


def recipe_of(shards: Path, output: Path, name: str, **changes: Any) -> TokenizerRecipe:
    values = recipe_values("tokenizer", shards, output, experiment__name=name, **changes)
    recipe = build_recipe("tokenizer", values)
    assert isinstance(recipe, TokenizerRecipe)
    return recipe


def trained(shards: Path, output: Path, name: str, **changes: Any) -> ConvTokenizer:
    return train_tokenizer(recipe_of(shards, output, name, **changes))


def last_state(folder: Path) -> dict[str, Any]:
    return load_checkpoint(checkpoint_files(folder)[-1])


def assert_equal(one: Any, other: Any) -> None:
    """Nested dicts and lists of tensors are equal bit by bit."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        for mine, theirs in zip(one, other, strict=True):
            assert_equal(mine, theirs)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def difference(one: nn.Module, other: nn.Module) -> float:
    """Largest difference of two networks' weights."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((mine - theirs).abs().max().item() for mine, theirs in pairs)


@pytest.mark.parametrize("start", [1, 3])
def test_a_resumed_run_goes_on_exactly_with_and_without_its_adversary(
    shards: Path, tmp_path: Path, start: int
) -> None:
    recipe = recipe_of(
        shards, tmp_path, "run", model__discriminator=PATCH_GAN, losses__discriminator_start=start
    )
    train_tokenizer(recipe)
    whole = last_state(recipe.folder)
    checkpoint_files(recipe.folder)[-1].unlink()
    assert last_state(recipe.folder)["step"] == 2
    train_tokenizer(recipe, resume=True)
    assert_equal(whole, last_state(recipe.folder))
    assert whole["networks"]["adversary"]["lecam.real"] != 0


def test_the_discriminator_learns_from_its_first_step_on(shards: Path, tmp_path: Path) -> None:
    trained(
        shards, tmp_path, "run", experiment__save_every=2, **ADVERSARIAL, lr_scheduler__params__warmup_steps=0
    )
    before, after = (load_checkpoint(file) for file in checkpoint_files(tmp_path / "run"))
    assert before["step"] == 2
    assert not before["optimizers"]["adversary"]["state"]
    key = "discriminator.main.0.weight"
    assert not torch.equal(before["networks"]["adversary"][key], after["networks"]["adversary"][key])


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_decoder_only_leaves_every_token_as_it_was(shards: Path, tmp_path: Path, precision: str) -> None:
    first = trained(shards, tmp_path, "first", lr_scheduler__params__warmup_steps=0)
    second = trained(
        shards,
        tmp_path,
        "second",
        **ADVERSARIAL,
        experiment__init_checkpoint=str(tmp_path / "first"),
        training__decoder_only=True,
        training__mixed_precision=precision,
        training__activation_checkpointing=True,
        optimizer__params__weight_decay=0.5,
        lr_scheduler__params__warmup_steps=0,
    )
    images = next(evaluation_batches(f"{shards}/val-000.tar", 16, 8)).images
    latents, others = first.encoder(images), second.encoder(images)
    assert torch.equal(latents, others)
    assert torch.equal(first.encode(images).indices, second.encode(images).indices)
    assert difference(first.encoder, second.encoder) == 0
    assert difference(first.decoder, second.decoder) > 1e-4


def test_decoder_only_needs_an_encoder_to_keep(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"experiment\.init_checkpoint is missing"):
        trained(shards, tmp_path, "run", training__decoder_only=True)
    assert not (tmp_path / "run").exists()


def test_activation_checkpointing_changes_no_weight(shards: Path, tmp_path: Path) -> None:
    plain = trained(shards, tmp_path, "plain", **ADVERSARIAL)
    saving = trained(shards, tmp_path, "saving", **ADVERSARIAL, training__activation_checkpointing=True)
    assert difference(plain, saving) < 1e-6


def test_accumulated_batches_are_one_batch(shards: Path, tmp_path: Path) -> None:
    """But for the mean distribution over codes, which is that of each batch, so its weight is 0 here."""
    changes = {"model__vq_model__entropy_loss_weight": 0.0, "lr_scheduler__params__warmup_steps": 0}
    whole = trained(shards, tmp_path, "whole", **changes)
    parts = trained(
        shards,
        tmp_path,
        "parts",
        **changes,
        training__per_gpu_batch_size=2,
        training__gradient_accumulation_steps=2,
    )
    assert difference(whole, parts) < 1e-4


@pytest.mark.parametrize("name", ["VQGAN+Discriminator", "Original"])
def test_every_adversarial_loss_trains_in_half_precision(shards: Path, tmp_path: Path, name: str) -> None:
    for loss in ("hinge", "vanilla", "non-saturating"):
        network = trained(
            shards,
            tmp_path,
            loss,
            model__discriminator={"name": name, "hidden_channels": 32, "num_stages": 1},
            losses__discriminator_start=0,
            losses__discriminator_loss=loss,
            losses__discriminator_gradient_penalty="adopt_weight",
            training__max_train_steps=2,
            training__mixed_precision="bf16",
            training__gradient_accumulation_steps=2,
        )
        assert all(torch.isfinite(parameter).all() for parameter in network.parameters())


def test_the_discriminators_schedule_runs_from_its_start_to_the_end(shards: Path, tmp_path: Path) -> None:
    recipe = recipe_of(
        shards,
        tmp_path,
        "run",
        **ADVERSARIAL,
        optimizer__params__discriminator_learning_rate=1.0,
        lr_scheduler__params__warmup_steps=2,
        training__max_train_steps=12,
    )
    rates = [discriminator_rate(recipe, step, 4) for step in (2, 3, 4, 8, 12)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.55, 0.1])


def test_the_adaptive_weight_of_a_compiled_network_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="adopt_weight"):
        trained(
            shards,
            tmp_path,
            "run",
            **ADVERSARIAL,
            losses__discriminator_gradient_penalty="adopt_weight",
            training__compile=True,
        )


def test_operations_of_a_step_are_counted(shards: Path, tmp_path: Path) -> None:
    conv = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False))
    forward = 2 * 3 * 4 * 9 * 8 * 8
    # For the tokenizer forward and back to the picture; twice for itself, forward and to the weights.
    assert discriminator_flops(conv, 3, 8) == 2 * forward + 2 * 2 * forward
    recipe = recipe_of(shards, tmp_path, "run")
    network = ConvTokenizer(recipe.model)
    once, larger = tokenizer_flops(network, None, 16), tokenizer_flops(network, None, 32)
    assert 3.9 * once < larger < 4.1 * once
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_nearest_code_is_chosen_in_single_precision_under_autocast(shards: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = recipe_of(
        shards, tmp_path, "run", model__vq_model__quantizer_type="lookup", model__vq_model__codebook_size=512
    )
    plain, state = ConvTokenizer(recipe.model), start_state(recipe, Accelerator(cpu=True))
    plain.load_state_dict(state.networks[TOKENIZER].state_dict())
    latents = torch.randn(4, 4, 16, 16)
    exact = plain.quantize(latents)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(plain.quantize(latents).indices, exact.indices)
        found = tokenizer_of(state).quantize(latents)
    assert torch.equal(found.indices, exact.indices)
    assert found.codes.dtype == torch.float32


def test_the_tokenizer_of_a_run_starts_from_its_seed(shards: Path, tmp_path: Path) -> None:
    recipe = recipe_of(shards, tmp_path, "run", **ADVERSARIAL)
    plain = recipe_of(shards, tmp_path, "run")
    accelerator = Accelerator(cpu=True)
    one, other = (start_state(each, accelerator).networks[TOKENIZER] for each in (recipe, plain))
    assert difference(one, other) == 0
