from pathlib import Path
from typing import Any

import pytest

from models.errors import ConfigError
from tests.training_fixtures import recipe_values
from training.config import ClassifierRecipe, TokenizerRecipe
from training.recipes import RECIPES, build_recipe, load_values


def build(kind: str = "tokenizer", **changes: Any) -> Any:
    return build_recipe(kind, recipe_values(kind, Path("shards"), Path("runs"), **changes))


def test_every_included_recipe_is_sound() -> None:
    files = sorted(RECIPES.glob("*.yaml"))
    assert len(files) >= 6
    for file in files:
        kind = {"tokenizer": "tokenizer", "generator": "generator"}.get(file.stem.split("_")[1], "classifier")
        assert build_recipe(kind, load_values(file.stem, [])).experiment.name == file.stem


def test_a_recipe_keeps_the_values_of_its_sections() -> None:
    recipe = build(losses__reconstruction_weight=2)
    assert isinstance(recipe, TokenizerRecipe)
    assert recipe.model.channel_mult == (1, 2)
    assert recipe.losses.reconstruction_weight == 2
    assert recipe.folder == Path("runs/run")


def test_overrides_replace_single_values_and_keep_their_types() -> None:
    overrides = ["training.max_train_steps=7", "optimizer.learning_rate=1e-3", "dataset.crop_scale=[0.5,1]"]
    recipe = build_recipe("classifier", load_values("fruit_judge", overrides))
    assert isinstance(recipe, ClassifierRecipe)
    assert recipe.training.max_train_steps == 7
    assert recipe.optimizer.learning_rate == 1e-3
    assert recipe.dataset.crop_scale == (0.5, 1)
    assert recipe.training.per_gpu_batch_size == 32


def test_an_override_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.seed.*section\.key=value"):
        load_values("fruit_judge", ["training.seed"])


def test_an_unknown_recipe_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no recipe file 'fruit'.*fruit_generator, fruit_judge, fruit_tok"):
        load_values("fruit", [])


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "a: ${b}", "\0", "a: 1\na: 2"])
def test_a_file_that_is_no_recipe_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load_values(str(tmp_path / "broken.yaml"), [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer__lr": 1}, "unknown lr; allowed are learning_rate"),
        ({"training__max_train_step": 1}, "unknown max_train_step"),
        ({"typo__key": 1}, "unknown sections in a tokenizer recipe: typo"),
        ({"model__discriminator": {"a": 1}}, "model.discriminator"),
        ({"sampling__steps": 3}, "unknown sections in a tokenizer recipe: sampling"),
    ],
)
def test_an_unknown_key_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer__learning_rate": "fast"}, "OptimizerConfig: learning_rate is 'fast'; its type is float"),
        ({"optimizer__learning_rate": 0}, "learning_rate is 0"),
        ({"optimizer__beta2": 1.0}, "optimizer.beta2 is 1.0"),
        ({"training__max_train_steps": 0}, "max_train_steps is 0"),
        ({"training__max_train_steps": 2.5}, "LoopConfig: max_train_steps is '2.5'; its type is int"),
        ({"training__seed": -1}, "training.seed is -1"),
        ({"training__seed": True}, "LoopConfig: seed is 'True'; its type is int"),
        ({"training__mixed_precision": "fp8"}, "mixed_precision is 'fp8'; allowed are 'no' and 'bf16'"),
        ({"training__ema_decay": 1}, "ema_decay is 1"),
        ({"dataset__flip": "maybe"}, "DatasetConfig: flip is 'maybe'; its type is bool"),
        (
            {"dataset__crop_scale": [0.8]},
            "crop_scale is '.0.8,.'; its type is tuple.float, float.",
        ),
        ({"dataset__crop_scale": [0.9, 0.8]}, "0 < low <= high <= 1"),
        ({"dataset__classes": 3}, "classes is '3'; its type is str . None"),
        ({"dataset__interpolation": "nearest"}, "'bilinear' and 'bicubic'"),
        ({"dataset__image_size": 15}, "image_size is 15; the tokenizer needs a multiple of 2"),
        ({"lr_scheduler__scheduler": "step"}, "lr_scheduler.scheduler is 'step'"),
        ({"losses__reconstruction_loss": "l3"}, "'l1' and 'l2'"),
        ({"experiment__name": "a/b"}, "a plain folder name"),
        ({"experiment__name": ".."}, "a plain folder name"),
        (
            {"model__vq_model": {"channel_mult": [1, "2"]}},
            "TokenizerConfig: channel_mult is .*; its type is tuple.int",
        ),
        ({"model__vq_model": 3}, "section vq_model is 3"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses__mask_schedule": "sine"}, "losses.mask_schedule is 'sine'; allowed are arccos, cosine"),
        ({"losses__class_dropout": 1}, "losses.class_dropout is 1"),
        ({"model__tokenizer": ""}, "model.tokenizer is missing"),
    ],
)
def test_a_generator_recipe_is_checked_too(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("generator", **changes)


def test_a_recipe_of_another_kind_says_which_section_it_lacks() -> None:
    with pytest.raises(ConfigError, match="no mlm_model, which training a generator needs"):
        build_recipe("generator", recipe_values("tokenizer", Path("shards"), Path("runs")))


def test_a_missing_section_value_is_named() -> None:
    values = recipe_values("tokenizer", Path("shards"), Path("runs"))
    del values["training"]
    with pytest.raises(ConfigError, match=r"max_train_steps"):
        build_recipe("tokenizer", values)
