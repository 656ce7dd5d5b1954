"""Recipes from YAML: the published files unchanged, overrides, and what is refused."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from models.bundle import Bundle
from models.config import GeneratorConfig, TokenizerConfig
from models.errors import BundleError, ConfigError, MaskBitError
from models.sampling_config import SamplingConfig
from tests.published_recipes import GENERATORS, TOKENIZERS, write_published
from tests.training_fixtures import recipe_values
from training.config import ExperimentConfig, LoopConfig, OptimizerConfig, SchedulerConfig
from training.data.config import DatasetConfig
from training.losses.config import DiscriminatorConfig, GeneratorLossConfig, TokenizerLossConfig
from training.recipe import ClassifierRecipe, GeneratorRecipe, TokenizerRecipe
from training.recipe_file import MODEL_SECTIONS, RECIPES, build_recipe, load_values

TRAIN_SHARDS = "DATA_PATH/imagenet_shards/train/imagenet-train-{0000..0252}.tar"
EVAL_SHARDS = "DATA_PATH/imagenet_shards/val/imagenet-val-{0000..0009}.tar"
TOKENIZER = TokenizerConfig(
    model_class="vqgan+",
    num_channels=3,
    hidden_channels=128,
    channel_mult=(1, 1, 2, 2, 4),
    num_resolutions=5,
    num_res_blocks=2,
    sample_with_conv=True,
    commitment_cost=0.25,
    entropy_loss_weight=0.02,
    entropy_loss_temperature=0.01,
    entropy_gamma=1.0,
)


def build(kind: str = "tokenizer", **changes: Any) -> Any:
    return build_recipe(kind, recipe_values(kind, Path("shards"), Path("runs"), **changes))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_published_tokenizer_file_gives_the_published_training(name: str, tmp_path: Path) -> None:
    recipe = build_recipe("tokenizer", load_values(write_published(tmp_path, name), []))
    stated = TOKENIZERS[name]
    lookup_free = stated["quantizer_type"] == "lookup-free"
    assert recipe == TokenizerRecipe(
        experiment=ExperimentConfig(
            name=stated.get("name", name),
            project="MaskBit",
            output_dir="runs",
            max_train_examples=1_281_167,
            log_every=50,
            log_grad_norm_every=100_000,
            save_every=20_000,
            generate_every=2000,
            eval_every=20_000,
            logger="tensorboard",
            resume=True,
            sync_to_hdfs=True,
        ),
        dataset=DatasetConfig(
            train_shards_path_or_url=TRAIN_SHARDS,
            eval_shards_path_or_url=EVAL_SHARDS,
            resolution=256,
            shuffle_buffer_size=1000,
            num_workers_per_gpu=8,
            pin_memory=True,
            persistent_workers=True,
            use_random_crop=True,
            min_scale=0.8,
            use_aspect_ratio_aug=True,
            interpolation="bilinear",
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-4,
            discriminator_learning_rate=1e-4,
            scale_lr=False,
            beta1=0.9,
            beta2=0.999,
            weight_decay=1e-4,
            epsilon=1e-8,
        ),
        lr_scheduler=SchedulerConfig("cosine_with_minimum", learning_rate=1e-4, warmup_steps=5000),
        training=LoopConfig(
            max_train_steps=1_350_000,
            per_gpu_batch_size=16,
            gradient_accumulation_steps=1,
            mixed_precision="no",
            enable_tf32=True,
            use_ema=True,
            ema_decay=0.999,
            max_grad_norm=1.0,
            seed=42,
            overfit_batch=False,
            overfit_batch_num=1,
            num_generated_images=2,
        ),
        model=replace(
            TOKENIZER,
            quantizer_type=stated["quantizer_type"],
            token_size=stated["token_size"],
            codebook_size=stated["codebook_size"],
            entropy_loss_weight=0.02 if lookup_free else 0.0,
        ),
        discriminator=DiscriminatorConfig(
            "VQGAN+Discriminator",
            num_channels=3,
            num_stages=4,
            hidden_channels=128,
            blur_resample=True,
            blur_kernel_size=4,
        ),
        losses=TokenizerLossConfig(
            quantizer_weight=1.0,
            perceptual_loss="resnet50",
            perceptual_weight=0.1,
            perceptual_loss_on_logits=True,
            reconstruction_loss="l2",
            reconstruction_weight=4.0,
            discriminator_start=20_000,
            discriminator_loss="hinge",
            discriminator_factor=1.0,
            discriminator_weight=0.02,
            discriminator_gradient_penalty="none",
            discriminator_penalty_cost=10.0,
            lecam_regularization_weight=0.001,
            entropy_annealing_steps=2000,
            entropy_annealing_factor=2.0 if lookup_free else 0.0,
        ),
    )
    assert isinstance(recipe, TokenizerRecipe)
    assert recipe.model.bits == (int(name.split("_")[2].removesuffix("bit")))
    assert recipe.dataset.crop_ratio == (3 / 4, 4 / 3)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_published_generator_file_gives_the_published_training(name: str, tmp_path: Path) -> None:
    recipe = build_recipe("generator", load_values(write_published(tmp_path, name), []))
    bits, guidance_scale, noise_temperature, guidance_pow, steps = GENERATORS[name]
    assert recipe == GeneratorRecipe(
        experiment=ExperimentConfig(
            name=name,
            max_train_examples=1_281_167,
            log_grad_norm_every=100_000,
            save_every=100_000,
            generate_every=10_000,
            eval_every=100_000,
            resume=True,
            vqgan_checkpoint=f"MODEL_PATH/maskbit_tokenizer_{bits}bit.bin",
        ),
        dataset=DatasetConfig(
            train_shards_path_or_url=TRAIN_SHARDS,
            eval_shards_path_or_url=EVAL_SHARDS,
            resolution=256,
            num_workers_per_gpu=8,
            pin_memory=True,
            min_scale=0.8,
            use_aspect_ratio_aug=False,
            interpolation="bicubic",
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4, beta2=0.96, weight_decay=0.045),
        lr_scheduler=SchedulerConfig(learning_rate=1e-4, warmup_steps=5000),
        training=LoopConfig(max_train_steps=1_350_000, per_gpu_batch_size=32, num_generated_images=4),
        tokenizer=replace(TOKENIZER, token_size=bits, codebook_size=1 << bits),
        model=GeneratorConfig(
            model_cls="lfq_bert",
            bits=bits,
            hidden_dim=1024,
            depth=24,
            heads=16,
            mlp_dim=4096,
            dropout=0.1,
            codebook_splits=2,
            use_prenorm=False,
            img_size=256,
            input_stride=16,
            nclass=1000,
        ),
        sampling=SamplingConfig(
            steps=steps,
            guidance_scale=guidance_scale,
            guidance_annealing="cosine",
            guidance_pow=guidance_pow,
            temperature=1.0,
            noise_temperature=noise_temperature,
            mask_schedule="arccos",
            anneal_temperature=False,
        ),
        losses=GeneratorLossConfig(
            label_smoothing=0.1,
            sum_splits=False,
            loss_on="all",
            class_label_dropout=0.1,
            train_mask_schedule_strategy="arccos",
        ),
    )
    assert recipe.dataset.crop_ratio == (1, 1)


def test_every_included_recipe_is_sound() -> None:
    files = sorted(RECIPES.glob("*.yaml"))
    assert len(files) >= 6
    for file in files:
        values = load_values(file.stem, [])
        kind = next(
            kind
            for kind in ("generator", "tokenizer", "classifier")
            if MODEL_SECTIONS[kind] in values["model"]
        )
        if kind == "generator":  # its bundle, runs/NAME/bundle, is described by the recipe NAME
            tokenizer = values["experiment"]["vqgan_checkpoint"].split("/")[1]
            values["model"]["vq_model"] = load_values(tokenizer, [])["model"]["vq_model"]
        assert build_recipe(kind, values).experiment.name == file.stem


def test_an_override_replaces_a_value_where_it_stands_and_where_it_is_repeated(tmp_path: Path) -> None:
    path = write_published(tmp_path, "maskbit_tokenizer_12bit")
    overrides = [
        "training.per_gpu_batch_size=32",
        "optimizer.params.learning_rate=3e-4",
        "model.vq_model.channel_mult=[1,2]",
        "model.vq_model.num_resolutions=2",
        "dataset.params.train_shards_path_or_url=/data/{0..9}.tar",
        "experiment.init_checkpoint=weights.bin",
        "training.mixed_precision=bf16",
    ]
    recipe = build_recipe("tokenizer", load_values(path, overrides))
    assert isinstance(recipe, TokenizerRecipe)
    assert recipe.training.per_gpu_batch_size == 32
    assert recipe.optimizer.learning_rate == recipe.lr_scheduler.learning_rate == 3e-4
    assert recipe.model.channel_mult == (1, 2)
    assert recipe.dataset.train_shards_path_or_url == "/data/{0..9}.tar"
    assert (recipe.experiment.init_checkpoint, recipe.training.mixed_precision) == ("weights.bin", "bf16")
    assert recipe.training.max_train_steps == 1_350_000


def test_an_override_may_add_a_key_of_ours_and_leave_out_a_section(tmp_path: Path) -> None:
    path = write_published(tmp_path, "maskbit_tokenizer_12bit")
    overrides = ["training.compile=true", "model.discriminator=null", "model.vq_model.norm_groups=16"]
    recipe = build_recipe("tokenizer", load_values(path, overrides))
    assert isinstance(recipe, TokenizerRecipe)
    assert recipe.training.compile
    assert recipe.discriminator is None
    assert recipe.model.norm_groups == 16


def test_the_rate_of_the_schedule_may_not_contradict_that_of_the_optimizer(tmp_path: Path) -> None:
    path = write_published(tmp_path, "maskbit_tokenizer_12bit")
    values = load_values(path, ["lr_scheduler.params.learning_rate=1"])
    with pytest.raises(
        ConfigError, match=r"lr_scheduler.params.learning_rate is 1; it must be .*learning_rate, 0\.0001"
    ):
        build_recipe("tokenizer", values)


def test_dataset_keys_may_stand_in_either_part() -> None:
    recipe = build(dataset__params__min_scale=0.5, dataset__preprocessing__num_workers_per_gpu=3)
    assert (recipe.dataset.min_scale, recipe.dataset.num_workers_per_gpu) == (0.5, 3)


def test_optimizer_keys_may_stand_outside_params() -> None:
    recipe = build(optimizer__learning_rate=0.5, lr_scheduler__warmup_steps=9)
    assert (recipe.optimizer.learning_rate, recipe.lr_scheduler.warmup_steps) == (0.5, 9)


def test_a_generator_without_vq_model_takes_the_tokenizer_of_its_bundle(tiny_bundle: Bundle) -> None:
    changes = {"model__vq_model": None, "experiment__vqgan_checkpoint": str(tiny_bundle.path)}
    recipe = build("generator", **changes)
    assert recipe.tokenizer == tiny_bundle.manifest.tokenizer
    assert (recipe.model.bits, recipe.model.input_stride, recipe.model.img_size) == (6, 2, 16)


def test_a_generator_whose_tokenizer_is_unknown_says_how_to_name_it() -> None:
    with pytest.raises(ConfigError, match=r"experiment.vqgan_checkpoint is missing.*model.vq_model"):
        build("generator", model__vq_model=None, experiment__vqgan_checkpoint="")
    with pytest.raises(ConfigError, match=r"experiment.vqgan_checkpoint is missing"):
        build("generator", experiment__vqgan_checkpoint="")
    with pytest.raises(BundleError, match="nowhere"):
        build("generator", model__vq_model=None, experiment__vqgan_checkpoint="nowhere")


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("tokenizer", "experiment__nmae", "unknown nmae; allowed are name, project"),
        ("tokenizer", "model__vq_model__depth", "unknown depth; allowed are model_class"),
        ("tokenizer", "model__discriminator__width", "unknown width; allowed are name"),
        ("tokenizer", "model__tokenizer", "unknown in a tokenizer recipe: model.tokenizer"),
        ("tokenizer", "losses__entropy", "unknown entropy; allowed are quantizer_weight"),
        ("tokenizer", "dataset__params__shuffle", "unknown shuffle; allowed are train_shards"),
        ("tokenizer", "dataset__preprocessing__size", "unknown size; allowed are train_shards"),
        ("tokenizer", "dataset__shards", "dataset: unknown shards; allowed are params and preprocessing"),
        ("tokenizer", "optimizer__params__lr", "unknown lr; allowed are name, learning_rate"),
        ("tokenizer", "optimizer__momentum", "unknown momentum; allowed are name, learning_rate"),
        ("tokenizer", "lr_scheduler__params__gamma", "unknown gamma; allowed are scheduler"),
        ("tokenizer", "training__max_train_step", "unknown max_train_step; allowed are max_train_steps"),
        ("tokenizer", "typo", "unknown in a tokenizer recipe: typo"),
        ("generator", "model__mlm_model__layers", "mlm_model: unknown layers; allowed are"),
        ("generator", "model__vq_model__layers", "unknown layers; allowed are model_class"),
        ("generator", "losses__mlm__smoothing", "unknown smoothing; allowed are label_smoothing"),
        ("generator", "losses__reconstruction_weight", "in a generator recipe: losses.reconstruction_weight"),
        ("generator", "model__discriminator", "in a generator recipe: model.discriminator"),
        ("classifier", "model__classifier__depth", "unknown depth; allowed are widths, num_classes"),
        ("classifier", "model__vq_model", "unknown in a classifier recipe: model.vq_model"),
    ],
)
def test_an_unknown_key_is_refused_by_name(kind: str, change: str, message: str) -> None:
    if change.startswith("model__discriminator__"):
        change, value = "model__discriminator", {change.rpartition("__")[2]: 1}
    else:
        value = {"a": 1} if change.count("__") < 2 and change != "dataset__shards" else 1  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=message):
        build(kind, **{change: value})


@pytest.mark.parametrize("kind", ["tokenizer", "generator", "classifier"])
def test_a_recipe_of_another_kind_says_which_section_it_lacks(kind: str) -> None:
    other, lacks = {
        "tokenizer": ("classifier", "vq_model"),
        "generator": ("tokenizer", "mlm_model"),
        "classifier": ("generator", "classifier"),
    }[kind]
    values = recipe_values(other, Path("shards"), Path("runs"))
    with pytest.raises(ConfigError, match=f"section model has no {lacks}, which training a {kind} needs"):
        build_recipe(kind, values)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("training", "max_train_steps"),
        ("experiment", "name"),
        ("dataset", "train_shards_path_or_url"),
        ("model", "no vq_model"),
    ],
)
def test_a_missing_section_is_told_by_what_it_would_say(section: str, message: str) -> None:
    values = recipe_values("tokenizer", Path("shards"), Path("runs"))
    del values[section]
    with pytest.raises(ConfigError, match=message):
        build_recipe("tokenizer", values)


@pytest.mark.parametrize("section", ["model", "experiment", "training", "dataset", "optimizer"])
def test_a_section_that_is_no_mapping_is_named(section: str) -> None:
    values = {**recipe_values("tokenizer", Path("shards"), Path("runs")), section: 3}
    with pytest.raises(ConfigError, match=f"section {section} is 3; it must be a mapping"):
        build_recipe("tokenizer", values)


def test_an_override_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"override 'training\.seed'; the form is section\.key=value"):
        load_values("fruit_judge", ["training.seed"])


def test_an_unknown_recipe_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no recipe file 'fruit'.*fruit_generator, fruit_judge"):
        load_values("fruit", [])


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "a: ${b}", "\0", "a: 1\na: 2", "3", ""])
def test_a_file_that_is_no_recipe_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(MaskBitError, match=r"broken\.yaml|section model") as caught:
        build_recipe("tokenizer", load_values(str(tmp_path / "broken.yaml"), []))
    assert caught.value


PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3))
KEYS = st.text(max_size=3)
TREES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner))


@settings(deadline=None)
@given(st.data())
def test_any_value_at_any_key_makes_a_recipe_or_a_clear_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["tokenizer", "generator", "classifier"]))
    values = recipe_values(kind, Path("shards"), Path("runs"))
    section = data.draw(st.sampled_from(sorted(values)))
    keys = sorted(values[section])
    values[section][data.draw(st.sampled_from(keys) | st.text(max_size=3))] = data.draw(TREES)
    with suppress(MaskBitError):
        assert isinstance(build_recipe(kind, values), TokenizerRecipe | GeneratorRecipe | ClassifierRecipe)


@settings(deadline=None)
@given(st.text(max_size=20))
def test_any_override_is_applied_or_a_clear_error(override: str) -> None:
    with suppress(ConfigError):
        assert isinstance(load_values("fruit_judge", [override]), dict)


def test_a_recipe_written_as_yaml_is_read_back_the_same(tmp_path: Path) -> None:
    values = recipe_values("generator", Path("shards"), Path("runs"))
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(values))
    assert build_recipe("generator", load_values(str(tmp_path / "own.yaml"), [])) == build("generator")
