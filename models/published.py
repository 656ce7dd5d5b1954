"""The published YAML sections `model.vq_model` and `model.mlm_model` in terms of our configurations.

Everything here is a pure function of parsed mappings; unknown keys are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from models.config import GeneratorConfig, TokenizerConfig
from models.errors import ConfigError
from models.sampling_config import SamplingConfig
from models.validation import from_mapping, require, require_positive

SECTIONS = ("experiment", "model", "losses", "dataset", "optimizer", "lr_scheduler", "training")
MODEL_SECTIONS = ("vq_model", "mlm_model", "discriminator")
RESOLUTION = 256  # pixels of all published models, for files that state none

# published key -> field of SamplingConfig; options of ours, which have no published key, keep their names
SAMPLING_KEYS = {
    "num_steps": "steps",
    "guidance_scale": "guidance_scale",
    "guidance_annealing": "guidance_annealing",
    "scale_pow": "guidance_pow",
    "softmax_temperature": "temperature",
    "randomize_temperature": "noise_temperature",
    "gen_mask_schedule_strategy": "mask_schedule",
    "use_sampling_annealing": "anneal_temperature",
}
TRAINING_KEYS = ("train_mask_schedule_strategy", "class_label_dropout")


class MlmModel(NamedTuple):
    """The section `mlm_model` in three parts.

    `network` holds fields of GeneratorConfig, `sampling` those of SamplingConfig, `training` keeps the
    published keys.
    """

    network: dict[str, Any]
    sampling: dict[str, Any]
    training: dict[str, Any]


@dataclass(frozen=True)
class PublishedModel:
    """A tokenizer alone, or with its generator; `sampling` tells how the generator was evaluated."""

    name: str
    tokenizer: TokenizerConfig
    generator: GeneratorConfig | None = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    image_size: int = RESOLUTION

    def __post_init__(self) -> None:
        require_positive(self, "image_size")


def tokenizer_config(vq_model: Mapping[str, Any]) -> TokenizerConfig:
    """The configuration of a section `vq_model`; what it does not state has the published value."""
    return from_mapping(TokenizerConfig, vq_model)


def split_mlm_model(mlm_model: Mapping[str, Any]) -> MlmModel:
    """Sort a section `mlm_model` into network, sampling and training; ConfigError names unknown keys."""
    network = {one.name for one in fields(GeneratorConfig)}
    own = {one.name for one in fields(SamplingConfig)} - set(SAMPLING_KEYS.values())
    sampling = {**SAMPLING_KEYS, **{name: name for name in own}}
    allowed = (*sorted(network), *sampling, *TRAINING_KEYS)
    _refuse_unknown("mlm_model", mlm_model, allowed)
    return MlmModel(
        {key: value for key, value in mlm_model.items() if key in network},
        {sampling[key]: value for key, value in mlm_model.items() if key in sampling},
        {key: value for key, value in mlm_model.items() if key in TRAINING_KEYS},
    )


def generator_config(
    network: Mapping[str, Any], tokenizer: TokenizerConfig, image_size: int
) -> GeneratorConfig:
    """The generator for the tokens of `tokenizer` on square pictures of `image_size` pixels.

    Bits, stride and size follow from the other two; ConfigError where `network` states something else.
    """
    derived = {"bits": tokenizer.bits, "input_stride": tokenizer.stride, "img_size": image_size}
    for key, value in derived.items():
        require(
            network.get(key, value) == value,
            f"mlm_model.{key} is {network.get(key)!r}; tokenizer and resolution make it {value}",
        )
    return from_mapping(GeneratorConfig, {**network, **derived})


def published_model(values: Mapping[str, Any], name: str) -> PublishedModel:
    """The model that a whole parsed YAML file describes; `name` is used where the file gives none."""
    _refuse_unknown("the file", values, SECTIONS)
    model = _section(values, "model")
    _refuse_unknown("model", model, MODEL_SECTIONS)
    require("vq_model" in model, "section model has no vq_model, which describes the tokenizer")
    tokenizer = tokenizer_config(_section(model, "vq_model"))
    preprocessing = _section(_section(values, "dataset"), "preprocessing")
    described = PublishedModel(
        name=str(_section(values, "experiment").get("name", name)),
        tokenizer=tokenizer,
        image_size=preprocessing.get("resolution", RESOLUTION),
    )
    if "mlm_model" not in model:
        return described
    mlm_model = split_mlm_model(_section(model, "mlm_model"))
    return PublishedModel(
        name=described.name,
        tokenizer=tokenizer,
        generator=generator_config(mlm_model.network, tokenizer, described.image_size),
        sampling=from_mapping(SamplingConfig, mlm_model.sampling),
        image_size=described.image_size,
    )


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = values.get(name)
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        raise ConfigError(f"section {name} is {str(section)[:80]!r}; it must be a mapping")
    return section


def _refuse_unknown(where: str, values: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    if unknown := sorted(str(key) for key in values if key not in allowed):
        raise ConfigError(f"{where}: unknown {', '.join(unknown)}; allowed are {', '.join(allowed)}")
