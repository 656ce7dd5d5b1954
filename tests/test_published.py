"""Published YAML sections in terms of our configurations."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from models.config import GeneratorConfig, TokenizerConfig
from models.errors import ConfigError
from models.published import generator_config, published_model, split_mlm_model, tokenizer_config
from models.sampling_config import SamplingConfig

VQ_MODEL: dict[str, Any] = {
    "model_class": "vqgan+",
    "quantizer_type": "lookup-free",
    "codebook_size": 16384,
    "token_size": 14,
    "commitment_cost": 0.25,
    "entropy_loss_weight": 0.02,
    "entropy_loss_temperature": 0.01,
    "entropy_gamma": 1.0,
    "num_channels": 3,
    "hidden_channels": 128,
    "channel_mult": [1, 1, 2, 2, 4],
    "num_resolutions": 5,
    "num_res_blocks": 2,
    "sample_with_conv": True,
}
MLM_MODEL: dict[str, Any] = {
    "model_cls": "lfq_bert",
    "hidden_dim": 1024,
    "depth": 24,
    "heads": 16,
    "mlp_dim": 4096,
    "dropout": 0.1,
    "guidance_scale": 5.8,
    "guidance_annealing": "cosine",
    "num_steps": 256,
    "train_mask_schedule_strategy": "arccos",
    "gen_mask_schedule_strategy": "cosine",
    "softmax_temperature": 1,
    "randomize_temperature": 10.3,
    "class_label_dropout": 0.1,
    "scale_pow": 2.5,
    "use_sampling_annealing": True,
    "codebook_splits": 2,
    "use_prenorm": False,
}


def whole(**model: Any) -> dict[str, Any]:
    """A file of all published sections, of which only some matter here."""
    return {
        "experiment": {"name": "some_run", "resume": True},
        "model": model,
        "losses": {"mlm": {"label_smoothing": 0.1}},
        "dataset": {"params": {}, "preprocessing": {"resolution": 512, "min_scale": 0.8}},
        "optimizer": {"name": "adamw"},
        "lr_scheduler": {"scheduler": "cosine_with_minimum"},
        "training": {"seed": 42},
    }


def test_a_whole_file_describes_networks_and_sampling() -> None:
    model = published_model(whole(vq_model=VQ_MODEL, mlm_model=MLM_MODEL), "file")
    assert (model.name, model.image_size) == ("some_run", 512)
    assert model.tokenizer == TokenizerConfig(token_size=14, codebook_size=16384)
    assert model.generator == GeneratorConfig(bits=14, img_size=512)
    assert model.sampling == SamplingConfig(
        steps=256,
        guidance_scale=5.8,
        guidance_annealing="cosine",
        guidance_pow=2.5,
        temperature=1.0,
        noise_temperature=10.3,
        mask_schedule="cosine",
        anneal_temperature=True,
    )


def test_a_file_of_a_tokenizer_alone_may_be_short() -> None:
    """As the one of Taming-VQGAN, and without the sections that concern training."""
    vq_model = {"model_class": "taming", "quantizer_type": "lookup", "codebook_size": 1024, "token_size": 256}
    model = published_model({"model": {"vq_model": vq_model}}, "taming_vqgan_tokenizer")
    assert (model.name, model.image_size, model.generator) == ("taming_vqgan_tokenizer", 256, None)
    assert (model.tokenizer.bits, model.tokenizer.stride) == (10, 16)


def test_what_concerns_training_alone_is_kept_apart_under_its_published_names() -> None:
    parts = split_mlm_model(MLM_MODEL)
    assert parts.training == {"train_mask_schedule_strategy": "arccos", "class_label_dropout": 0.1}
    assert sum(map(len, parts)) == len(MLM_MODEL)


def test_our_own_keys_are_understood_beside_the_published_ones() -> None:
    assert tokenizer_config({**VQ_MODEL, "norm_groups": 16}).norm_groups == 16
    network = split_mlm_model({**MLM_MODEL, "nclass": 16}).network
    assert generator_config(network, tokenizer_config(VQ_MODEL), 256).nclass == 16


def test_a_lookup_codebook_gives_the_generator_its_bits() -> None:
    tokenizer = TokenizerConfig(quantizer_type="lookup", codebook_size=4096, token_size=64)
    assert generator_config({"model_cls": "bert"}, tokenizer, 256) == GeneratorConfig(
        model_cls="bert", bits=12
    )


@pytest.mark.parametrize("key", ["bits", "input_stride", "img_size"])
def test_a_generator_that_contradicts_its_tokenizer_is_refused(key: str) -> None:
    agreed = {"bits": 14, "input_stride": 16, "img_size": 256}
    tokenizer = tokenizer_config(VQ_MODEL)
    assert generator_config(agreed, tokenizer, 256) == generator_config({}, tokenizer, 256)
    with pytest.raises(ConfigError, match=rf"mlm_model.{key} is 8; .* make it {agreed[key]}"):
        generator_config({**agreed, key: 8}, tokenizer, 256)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (whole(vq_model={**VQ_MODEL, "token_sise": 14}), "unknown token_sise"),
        (whole(vq_model=VQ_MODEL, mlm_model={**MLM_MODEL, "num_step": 3}), "mlm_model: unknown num_step;"),
        (whole(vq_model=VQ_MODEL, mlm_model={"steps": 3}), "mlm_model: unknown steps;"),
        (whole(vq_model=VQ_MODEL, mlm={}), "model: unknown mlm;"),
        (whole(mlm_model=MLM_MODEL), "model has no vq_model"),
        (whole(vq_model=VQ_MODEL, mlm_model=[1]), r"section mlm_model is '\[1\]'"),
        ({**whole(vq_model=VQ_MODEL), "loses": {}}, "the file: unknown loses;"),
        ({**whole(vq_model=VQ_MODEL), "dataset": {"preprocessing": {"resolution": "big"}}}, "image_size"),
        ({}, "model has no vq_model"),
    ],
)
def test_what_does_not_belong_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        published_model(values, "file")


def test_every_sampling_option_can_be_stated() -> None:
    """Those that the published code lacks keep their own names."""
    parts = split_mlm_model(MLM_MODEL)
    values = {key: value for key, value in asdict(SamplingConfig()).items() if key not in parts.sampling}
    assert split_mlm_model({**MLM_MODEL, **values}).sampling == {**parts.sampling, **values}
