"""Stage II: what the network sees, what it is asked, and the published faults that are not repeated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from models.networks import build_generator
from tests.training_fixtures import sample_files
from tests.training_runs import TRAIN, assert_same, curve, numbers_of, recipe_of, scalars, write_data
from training import generator_loop
from training.cache.building import build_cache
from training.checkpoints import RunState
from training.data.batch import Batch
from training.frozen_tokenizer import groups_of, load_frozen_tokenizer
from training.generator_loop import (
    backward_passes,
    draw_classes,
    evaluate,
    flops_of_step,
    guess,
    start_state,
    train_generator,
    training_batches,
)
from training.processes import processes
from training.recipe import GeneratorRecipe

STEADY = {"lr_scheduler__params__warmup_steps": 0}
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def recipe(data: Path, tmp_path: Path) -> GeneratorRecipe:
    recipe = recipe_of("generator", data, tmp_path, model__mlm_model__dropout=0.5)
    assert isinstance(recipe, GeneratorRecipe)
    return recipe


@pytest.fixture
def accelerator(recipe: GeneratorRecipe) -> Iterator[Accelerator]:
    with processes(recipe.training) as accelerator:
        yield accelerator


class Watched(nn.Module):
    """A generator that notes what it is given and whether it is in training mode."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls: list[tuple[Tensor, Tensor, bool]] = []

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        self.calls.append((tokens.clone(), labels.clone(), self.network.training))
        logits: Tensor = self.network(tokens, labels)
        return logits


def watched_step(
    recipe: GeneratorRecipe, accelerator: Accelerator, batches: list[Batch], step: int = 0
) -> tuple[Watched, RunState]:
    """The network after the backward passes of a step on `batches`."""
    state = start_state(recipe, accelerator)
    state.step = step
    watched = Watched(state.networks["generator"])
    state.networks["generator"] = watched
    tokenizer = load_frozen_tokenizer(recipe, CPU)
    backward_passes(recipe, accelerator, state, tokenizer, iter(batches))
    return watched, state


def batches_of(recipe: GeneratorRecipe, accelerator: Accelerator, count: int) -> list[Batch]:
    state = start_state(recipe, accelerator)
    stream = training_batches(recipe, accelerator, state, load_frozen_tokenizer(recipe, CPU))
    found = [next(stream) for _ in range(count)]
    assert all(isinstance(batch, Batch) for batch in found)
    return found  # type: ignore[return-value]


def test_the_network_sees_the_tokens_but_for_masked_groups_and_hidden_classes(
    recipe: GeneratorRecipe, accelerator: Accelerator
) -> None:
    recipe = replace(recipe, losses=replace(recipe.losses, class_label_dropout=0.5))
    (batch,) = batches_of(recipe, accelerator, 1)
    labels, images = batch.labels.clone(), batch.images.clone()
    tokens = groups_of(load_frozen_tokenizer(recipe, CPU), images, recipe.model)
    seen_masks, hidden = [], []
    for step in range(6):
        watched, _ = watched_step(recipe, accelerator, [batch], step)
        ((seen, known, training),) = watched.calls
        assert training
        masked = seen == recipe.model.group_codes
        assert torch.equal(seen[~masked], tokens[~masked])
        assert torch.equal(known[known != recipe.model.nclass], labels[known != recipe.model.nclass])
        seen_masks.append(masked)
        hidden.append(known == recipe.model.nclass)
    assert torch.equal(batch.labels, labels)  # not changed in place
    assert torch.equal(batch.images, images)
    assert not torch.equal(seen_masks[0], seen_masks[1])
    assert 0 < torch.stack(hidden).float().mean() < 1


def test_indices_are_split_into_groups_from_the_lowest_bits_on(recipe: GeneratorRecipe) -> None:
    tokenizer = load_frozen_tokenizer(recipe, CPU)
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    assert not tokenizer.training
    images = torch.rand(2, 3, 16, 16)
    indices = tokenizer.encode(images).indices.flatten(1)
    groups = groups_of(tokenizer, images, recipe.model)
    assert torch.equal(groups[..., 0] + 4 * groups[..., 1], indices)
    assert int(groups.max()) < 4


def test_dropout_stays_on_after_pictures_were_drawn_in_mid_training(
    recipe: GeneratorRecipe, accelerator: Accelerator
) -> None:
    batch = batches_of(recipe, accelerator, 1)
    state = start_state(recipe, accelerator)
    tokenizer = load_frozen_tokenizer(recipe, CPU)
    watched = Watched(state.networks["generator"])
    state.networks["generator"] = watched
    gradients = []
    for draws in range(2):
        if draws:
            drawn = draw_classes(state.ema.average, tokenizer, recipe, CPU)
            assert drawn.shape == (3, 3, 16, 16)
            evaluate(state.ema.average, tokenizer, recipe, accelerator)
        backward_passes(recipe, accelerator, state, tokenizer, iter(batch))
        gradients.append([parameter.grad.clone() for parameter in watched.parameters()])  # type: ignore[union-attr]
        watched.zero_grad()
    assert [training for *_, training in watched.calls] == [True, True]
    # the same step with the same seed: the same dropout
    assert_same(gradients[0], gradients[1])
    assert any(module.training for module in watched.modules() if isinstance(module, nn.Dropout))
    watched.eval()
    assert not torch.equal(watched(*watched.calls[0][:2]), watched.train()(*watched.calls[0][:2]))


@pytest.mark.parametrize("loss_on", ["all", "masked", "weighted"])
def test_accumulated_half_batches_give_the_losses_of_the_whole_one(
    loss_on: str, data: Path, tmp_path: Path
) -> None:
    shared = {"losses__mlm__loss_on": loss_on, "model__mlm_model__dropout": 0.0, "experiment__log_every": 1}
    parts = {"training__per_gpu_batch_size": 2, "training__gradient_accumulation_steps": 2}
    whole = recipe_of("generator", data, tmp_path / "whole", **shared, **STEADY)
    halves = recipe_of("generator", data, tmp_path / "halves", **shared, **parts, **STEADY)
    networks = [train_generator(recipe) for recipe in (whole, halves)]
    assert curve(halves.folder) == pytest.approx(curve(whole.folder), rel=1e-5)
    assert len(curve(whole.folder)) == 4
    for key, value in networks[0].state_dict().items():
        assert torch.allclose(value, networks[1].state_dict()[key], atol=2e-4), key


def test_the_loss_of_a_cache_is_that_of_the_pictures_it_was_made_of(data: Path, tmp_path: Path) -> None:
    plain = {"dataset__preprocessing__use_random_crop": False, "dataset__preprocessing__flip": False}
    recipe = recipe_of("generator", data, tmp_path, **plain)
    build_cache(recipe, tmp_path / "cache", crops=1, store_flips=False)
    changes = {**plain, "experiment__log_every": 1, "training__per_gpu_batch_size": 36, **STEADY}
    for name, cache in (("pixels", None), ("cache", str(tmp_path / "cache"))):
        run = recipe_of(
            "generator", data, tmp_path, experiment__name=name, dataset__params__token_cache=cache, **changes
        )
        train_generator(run)
    # a batch is a whole epoch: the same pictures in another order, so under other masks
    assert curve(tmp_path / "cache") == pytest.approx(curve(tmp_path / "pixels"), rel=0.03)


def test_sum_splits_doubles_the_loss_of_two_groups(data: Path, tmp_path: Path) -> None:
    curves = []
    for sum_splits in (False, True):
        changes = {"losses__mlm__sum_splits": sum_splits, "experiment__log_every": 1}
        recipe = recipe_of("generator", data, tmp_path / str(sum_splits), **changes)
        train_generator(recipe)
        curves.append(curve(recipe.folder)[0])
    assert curves[1] == pytest.approx(2 * curves[0], rel=1e-6)


def test_an_evaluation_gives_the_same_numbers_at_every_call(
    recipe: GeneratorRecipe, accelerator: Accelerator
) -> None:
    network, tokenizer = build_generator(recipe.model).eval(), load_frozen_tokenizer(recipe, CPU)
    first = evaluate(network, tokenizer, recipe, accelerator)
    torch.rand(3)
    assert evaluate(network, tokenizer, recipe, accelerator) == first
    assert first["masked_loss"] == pytest.approx(np.log(4), abs=0.1)  # nothing is known yet


def test_a_smaller_last_batch_of_an_evaluation_counts_by_its_pictures(
    recipe: GeneratorRecipe, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, tokenizer = build_generator(recipe.model).eval(), load_frozen_tokenizer(recipe, CPU)
    pictures = 12  # of the evaluation set
    for size in (5, pictures):
        monkeypatch.setattr(generator_loop, "EVALUATION_BATCH", size)
        losses: list[Any] = []

        def noted(*arguments: Any, losses: list[Any] = losses) -> Any:
            losses.append(guess(*arguments))
            return losses[-1]

        monkeypatch.setattr(generator_loop, "guess", noted)
        found = evaluate(network, tokenizer, recipe, accelerator)["masked_loss"]
        rows = [min(size, pictures - start) for start in range(0, pictures, size)]
        weighed = [n * float(loss.masked) for n, loss in zip(rows, losses, strict=True)]
        expected: float = sum(weighed) / pictures
        assert found == pytest.approx(expected)


def test_pictures_are_drawn_by_class_and_seed_alone(recipe: GeneratorRecipe) -> None:
    network, tokenizer = build_generator(recipe.model).eval(), load_frozen_tokenizer(recipe, CPU)
    first = draw_classes(network, tokenizer, recipe, CPU)
    torch.rand(3)
    assert torch.equal(draw_classes(network, tokenizer, recipe, CPU), first)
    few = replace(recipe, training=replace(recipe.training, num_generated_images=2))
    assert draw_classes(network, tokenizer, few, CPU).shape[0] == 2


def test_counting_operations_leaves_no_trace(recipe: GeneratorRecipe, accelerator: Accelerator) -> None:
    state = start_state(recipe, accelerator)
    flops = flops_of_step(recipe, accelerator, state)
    assert all(parameter.grad is None for parameter in state.networks["generator"].parameters())
    twice = replace(recipe, training=replace(recipe.training, gradient_accumulation_steps=2))
    assert flops_of_step(twice, accelerator, state) == 2 * flops > 0


def test_columns_of_another_name_are_read_for_training_and_evaluation(data: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    files = [sample_files(key) for key in range(12)]
    table = {"jpeg": [pair[0][1] for pair in files], "kind": [int(pair[1][1]) for pair in files]}
    parquet.write_table(pyarrow.table(table), tmp_path / "all.parquet")
    changes: dict[str, Any] = {
        "dataset__params__train_shards_path_or_url": str(tmp_path / "all.parquet"),
        "dataset__params__eval_shards_path_or_url": str(tmp_path / "all.parquet"),
        "dataset__params__image_column": "jpeg",
        "dataset__params__label_column": "kind",
        "training__max_train_steps": 1,
    }
    for kind in ("tokenizer", "generator", "classifier"):
        recipe = recipe_of(kind, data, tmp_path, experiment__name=kind, **changes)
        TRAIN[kind](recipe)
        assert numbers_of(recipe.folder)["step"] == 1


def test_speed_is_reported_with_operations(data: Path, tmp_path: Path) -> None:
    recipe = recipe_of("generator", data, tmp_path)
    train_generator(recipe)
    speed = scalars(recipe.folder, "train/images_per_s")
    operations = scalars(recipe.folder, "train/flops_per_s")
    with processes(recipe.training) as accelerator:
        state = start_state(recipe, accelerator)
        expected = flops_of_step(recipe, accelerator, state) / recipe.training.per_gpu_batch_size
    for (_, images), (_, flops) in zip(speed, operations, strict=True):
        assert flops / images == pytest.approx(expected, rel=1e-4)


def test_sample_pictures_of_a_run_show_the_average(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def draw(network: nn.Module, *rest: Any) -> Tensor:
        drawn.append(network)
        return draw_classes(network, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(generator_loop, "draw_classes", draw)
    average = train_generator(recipe_of("generator", data, tmp_path))
    assert len(drawn) == 2
    assert all(network is average for network in drawn)
