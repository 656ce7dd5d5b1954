"""Wrong values in each section of a recipe, and settings that exclude one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.errors import ConfigError
from tests.training_fixtures import recipe_values
from training.recipe_file import build_recipe


def build(kind: str = "tokenizer", **changes: Any) -> Any:
    return build_recipe(kind, recipe_values(kind, Path("shards"), Path("runs"), **changes))


def test_a_recipe_keeps_the_values_of_its_sections() -> None:
    recipe = build(losses__reconstruction_weight=2, dataset__preprocessing__aspect_ratio=[0.5, 2])
    assert recipe.model.channel_mult == (1, 2)
    assert recipe.losses.reconstruction_weight == 2
    assert recipe.dataset.crop_ratio == (0.5, 2)
    assert recipe.folder == Path("runs/run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experiment__name": "a/b"}, "experiment.name is 'a/b'; a plain folder name is needed"),
        ({"experiment__name": ".."}, "a plain folder name"),
        ({"experiment__name": ""}, "a plain folder name"),
        ({"experiment__save_every": 0}, "save_every is 0; a whole number of at least 1"),
        ({"experiment__log_every": -1}, "log_every is -1"),
        ({"experiment__log_grad_norm_every": 0}, "log_grad_norm_every is 0"),
        ({"experiment__generate_every": 0}, "generate_every is 0"),
        ({"experiment__eval_every": 2.5}, "eval_every is '2.5'; its type is int"),
        ({"experiment__max_train_examples": 0}, "max_train_examples is 0"),
        ({"experiment__logger": "wandb"}, "experiment.logger is 'wandb'; allowed is 'tensorboard'"),
        ({"optimizer__name": "sgd"}, "optimizer.name is 'sgd'; allowed is 'adamw'"),
        ({"optimizer__params__learning_rate": "fast"}, "learning_rate is 'fast'; its type is float"),
        ({"optimizer__params__learning_rate": 0}, r"optimizer.params.learning_rate is 0; it must be above 0"),
        ({"optimizer__params__discriminator_learning_rate": -1}, "discriminator_learning_rate is -1"),
        ({"optimizer__params__beta1": -0.1}, "optimizer.params.beta1 is -0.1; allowed is 0 <= beta1 < 1"),
        ({"optimizer__params__beta2": 1.0}, "optimizer.params.beta2 is 1.0"),
        ({"optimizer__params__epsilon": 0}, "optimizer.params.epsilon is 0"),
        ({"optimizer__params__weight_decay": -1}, "optimizer.params.weight_decay is -1"),
        ({"optimizer__params": [1]}, r"section params is \[1\]"),
        ({"lr_scheduler__scheduler": "step"}, "lr_scheduler.scheduler is 'step'; allowed is 'cosine_with"),
        ({"lr_scheduler__params__warmup_steps": -1}, "lr_scheduler.params.warmup_steps is -1"),
        ({"lr_scheduler__params__learning_rate": 1}, "it must be optimizer.params.learning_rate, 0.002"),
        ({"training__max_train_steps": 0}, "max_train_steps is 0"),
        ({"training__max_train_steps": 2.5}, "LoopConfig: max_train_steps is '2.5'; its type is int"),
        ({"training__per_gpu_batch_size": 0}, "per_gpu_batch_size is 0"),
        ({"training__gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0"),
        ({"training__overfit_batch_num": 0}, "overfit_batch_num is 0"),
        ({"training__num_generated_images": 0}, "num_generated_images is 0"),
        ({"training__seed": -1}, "training.seed is -1; allowed are 0 to 2147483647"),
        ({"training__seed": 2**31}, "training.seed is 2147483648"),
        ({"training__seed": True}, "LoopConfig: seed is 'True'; its type is int"),
        ({"training__mixed_precision": "fp16"}, "mixed_precision is 'fp16'; allowed are 'no' and 'bf16'"),
        ({"training__ema_decay": 1}, "ema_decay is 1; allowed is 0 <= decay < 1"),
        ({"training__max_grad_norm": 0}, "training.max_grad_norm is 0; it must be above 0"),
        ({"training__device": "tpu"}, "training.device is 'tpu'; allowed are 'auto', 'cpu' and 'cuda'"),
        ({"training__compile": "yes"}, "compile is 'yes'; its type is bool"),
        ({"dataset__preprocessing__flip": "maybe"}, "DatasetConfig: flip is 'maybe'; its type is bool"),
        ({"dataset__preprocessing__min_scale": 0}, "min_scale is 0; allowed is 0 < min_scale <= 1"),
        ({"dataset__preprocessing__min_scale": 1.1}, "dataset.preprocessing.min_scale is 1.1"),
        ({"dataset__preprocessing__aspect_ratio": [0.8]}, r"its type is tuple.float, float."),
        ({"dataset__preprocessing__aspect_ratio": [2, 1]}, "needed is 0 < low <= high"),
        ({"dataset__preprocessing__interpolation": "nearest"}, "allowed are 'bilinear' and 'bicubic'"),
        ({"dataset__preprocessing__resolution": 0}, "resolution is 0"),
        ({"dataset__preprocessing__resolution": 15}, "resolution is 15; the tokenizer needs a multiple of 2"),
        ({"dataset__params__classes": 3}, r"classes is '3'; its type is str . None"),
        ({"dataset__params__shuffle_buffer_size": 0}, "shuffle_buffer_size is 0"),
        ({"dataset__params__num_workers_per_gpu": -1}, "dataset.params.num_workers_per_gpu is -1"),
        ({"dataset__params__parts": 0}, "parts is 0"),
        ({"dataset__params__token_cache": "c"}, "dataset.token_cache is 'c'; training a tokenizer makes no"),
        ({"model__vq_model": 3}, "section vq_model is 3"),
        ({"model__vq_model": {"channel_mult": [1, "2"]}}, r"channel_mult is .*; its type is tuple.int"),
        ({"model__vq_model__model_class": "taming"}, "taming"),
        ({"model__discriminator": {"name": "StyleGAN"}}, "allowed are 'VQGAN.Discriminator' and 'Original'"),
        ({"model__discriminator": {"num_stages": 0}}, "num_stages is 0"),
        ({"model__discriminator": [1]}, r"section discriminator is \[1\]"),
        ({"losses__reconstruction_loss": "l3"}, "losses.reconstruction_loss is 'l3'; allowed are l1, l2"),
        ({"losses__perceptual_loss": "vgg"}, "losses.perceptual_loss is 'vgg'; allowed are none, resnet50"),
        ({"losses__discriminator_loss": "wgan"}, "allowed are hinge, vanilla, non-saturating"),
        ({"losses__discriminator_gradient_penalty": "r1"}, "allowed are none, adopt_weight"),
        ({"losses__discriminator_start": -1}, "losses.discriminator_start is -1; it must be at least 0"),
        ({"losses__entropy_annealing_factor": -1}, "losses.entropy_annealing_factor is -1"),
        ({"losses__lecam_regularization_weight": float("nan")}, "lecam_regularization_weight is 'nan'"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__mlm_model__train_mask_schedule_strategy": "sine"}, "'sine'; allowed are arccos, cosine"),
        ({"model__mlm_model__class_label_dropout": 1}, "model.mlm_model.class_label_dropout is 1"),
        ({"model__mlm_model__bits": 6}, "mlm_model.bits is 6; tokenizer and resolution make it 4"),
        ({"model__mlm_model__codebook_splits": 3}, "codebook_splits is 3; it must divide 4 bits"),
        ({"model__mlm_model__num_steps": 0}, "steps is 0"),
        ({"model__mlm_model__dropout": 1.0}, "dropout is 1.0"),
        ({"losses__mlm__label_smoothing": -0.1}, "losses.mlm.label_smoothing is -0.1"),
        ({"losses__mlm__loss_on": "unmasked"}, "loss_on is 'unmasked'; allowed are all, masked, weighted"),
        ({"losses__mlm__unmasked_weight": 2}, "losses.mlm.unmasked_weight is 2; allowed are 0 to 1"),
        ({"training__decoder_only": True}, "decoder_only is True; training a generator makes no use"),
    ],
)
def test_a_wrong_value_of_a_generator_recipe_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("generator", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__classifier__widths": [12]}, r"model.widths is \(12,\); needed"),
        ({"model__classifier__widths": []}, r"model.widths is \(\); needed is at least one width"),
        ({"model__classifier__num_classes": 0}, "num_classes is 0"),
        ({"training__decoder_only": True}, "training.decoder_only is True; training a classifier"),
        ({"experiment__init_checkpoint": "x"}, "experiment.init_checkpoint is 'x'; training a classifier"),
        ({"dataset__params__token_cache": "c"}, "dataset.token_cache is 'c'; training a classifier"),
    ],
)
def test_a_wrong_value_of_a_classifier_recipe_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("classifier", **changes)
