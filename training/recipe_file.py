"""Recipes from YAML files: the published layout, read strictly, with dotted overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from models.bundle import open_bundle
from models.config import TokenizerConfig
from models.errors import ConfigError
from models.published import generator_config, split_mlm_model, tokenizer_config
from models.sampling_config import SamplingConfig
from models.validation import from_mapping
from training.config import ExperimentConfig, LoopConfig, OptimizerConfig, SchedulerConfig
from training.data.config import DatasetConfig
from training.losses.config import DiscriminatorConfig, GeneratorLossConfig, TokenizerLossConfig
from training.recipe import ClassifierConfig, ClassifierRecipe, GeneratorRecipe, Recipe, TokenizerRecipe

T = TypeVar("T")

RECIPES = Path(__file__).parent / "configs"
MODEL_SECTIONS = {"tokenizer": "vq_model", "generator": "mlm_model", "classifier": "classifier"}


def load_values(path: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Nested dict of the YAML file, or recipe name, `path`, with overrides `section.key=value` applied."""
    file = Path(path)
    if not file.exists() and (RECIPES / f"{path}.yaml").exists():
        file = RECIPES / f"{path}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise ConfigError(f"no recipe file {path!r}; give a YAML file or one of {known}")
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"override {override!r}; the form is section.key=value")
    try:
        merged = OmegaConf.merge(OmegaConf.load(file), OmegaConf.from_dotlist(list(overrides)))
        values = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError, OSError, ValueError, TypeError) as exc:
        raise ConfigError(f"{file}: not a recipe ({' '.join(str(exc).split())})") from exc
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: a recipe is a mapping of sections")
    return {str(key): value for key, value in values.items()}


def build_recipe(kind: str, values: Mapping[str, Any]) -> Recipe:
    """The `kind` ("tokenizer", "generator" or "classifier") recipe in `values`; unknown keys are errors."""
    rest = dict(values)
    model = _section(rest, "model")
    key = MODEL_SECTIONS[kind]
    if key not in model:
        raise ConfigError(f"section model has no {key}, which training a {kind} needs")
    losses = _section(rest, "losses")
    shared: dict[str, Any] = {
        "experiment": from_mapping(ExperimentConfig, _section(rest, "experiment")),
        "dataset": _dataset(_section(rest, "dataset")),
        "optimizer": _with_params(OptimizerConfig, rest, "optimizer"),
        "lr_scheduler": _with_params(SchedulerConfig, rest, "lr_scheduler"),
        "training": from_mapping(LoopConfig, _training(_section(rest, "training"))),
    }
    build = {"tokenizer": _tokenizer, "generator": _generator, "classifier": _classifier}[kind]
    recipe = build(shared, model, losses)
    if unknown := [*rest, *(f"model.{key}" for key in model), *(f"losses.{key}" for key in losses)]:
        raise ConfigError(f"unknown in a {kind} recipe: {', '.join(unknown)}")
    return recipe


def _tokenizer(shared: dict[str, Any], model: dict[str, Any], losses: dict[str, Any]) -> Recipe:
    discriminator = _section(model, "discriminator")
    return TokenizerRecipe(
        **shared,
        model=tokenizer_config(_section(model, "vq_model")),
        discriminator=from_mapping(DiscriminatorConfig, discriminator) if discriminator else None,
        losses=_emptied(TokenizerLossConfig, losses),
    )


def _generator(shared: dict[str, Any], model: dict[str, Any], losses: dict[str, Any]) -> Recipe:
    mlm_model = split_mlm_model(_section(model, "mlm_model"))
    stated = _section(model, "vq_model")
    source = shared["experiment"].vqgan_checkpoint
    tokenizer = tokenizer_config(stated) if stated else _tokenizer_of_bundle(source)
    return GeneratorRecipe(
        **shared,
        tokenizer=tokenizer,
        model=generator_config(mlm_model.network, tokenizer, shared["dataset"].resolution),
        sampling=from_mapping(SamplingConfig, mlm_model.sampling),
        losses=from_mapping(GeneratorLossConfig, {**_section(losses, "mlm"), **mlm_model.training}),
    )


def _classifier(shared: dict[str, Any], model: dict[str, Any], losses: dict[str, Any]) -> Recipe:
    return ClassifierRecipe(**shared, model=from_mapping(ClassifierConfig, _section(model, "classifier")))


def _tokenizer_of_bundle(source: str) -> TokenizerConfig:
    if not source:
        raise ConfigError(
            "experiment.vqgan_checkpoint is missing; it names the bundle of a trained tokenizer, or its "
            "weights, which model.vq_model then describes"
        )
    return open_bundle(source).manifest.tokenizer


def _dataset(section: dict[str, Any]) -> DatasetConfig:
    """Keys stand in `params` or `preprocessing`; which of the two is left to the writer."""
    parts = {**_section(section, "params"), **_section(section, "preprocessing")}
    if section:
        raise ConfigError(f"dataset: unknown {', '.join(section)}; allowed are params and preprocessing")
    return from_mapping(DatasetConfig, parts)


def _training(section: dict[str, Any]) -> dict[str, Any]:
    """YAML takes a bare `no`, as in the override training.mixed_precision=no, for a boolean."""
    return {**section, "mixed_precision": "no"} if section.get("mixed_precision") is False else section


def _with_params(cls: type[T], values: dict[str, Any], name: str) -> T:
    section = _section(values, name)
    return from_mapping(cls, {**_section(section, "params"), **section})


def _emptied(cls: type[T], values: dict[str, Any]) -> T:
    """Read all of `values`, which is then empty."""
    read = from_mapping(cls, values)
    values.clear()
    return read


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Take the section `name` out of `values`; one that is missing or empty is {}."""
    section = values.pop(name, None)
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise ConfigError(f"section {name} is {section!r}; it must be a mapping")
    return dict(section)
