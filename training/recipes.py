"""Recipes: YAML files with the sections of the published configs, read strictly, with dotted overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from models.config import GeneratorConfig, SamplingConfig, TokenizerConfig, from_mapping
from models.errors import ConfigError
from training.config import (
    ClassifierConfig,
    ClassifierRecipe,
    DatasetConfig,
    ExperimentConfig,
    GeneratorLossConfig,
    GeneratorRecipe,
    LoopConfig,
    OptimizerConfig,
    Recipe,
    SchedulerConfig,
    TokenizerLossConfig,
    TokenizerRecipe,
)

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
        raise ConfigError(f"{file}: not a recipe ({exc})") from exc
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: a recipe is a mapping of sections")
    return {str(key): value for key, value in values.items()}


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    section = values.pop(name, None) or {}
    if not isinstance(section, dict):
        raise ConfigError(f"section {name} is {section!r}; it must be a mapping")
    return section


def _read(cls: type[T], name: str, values: dict[str, Any]) -> T:
    return from_mapping(cls, _section(values, name))


def _model_section(values: dict[str, Any], kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    model = _section(values, "model")
    key = MODEL_SECTIONS[kind]
    if key not in model:
        raise ConfigError(f"section model has no {key}, which training a {kind} needs")
    return _section(model, key), model


def build_recipe(kind: str, values: dict[str, Any]) -> Recipe:
    """The `kind` ("tokenizer", "generator" or "classifier") recipe in `values`; unknown keys are errors."""
    values = dict(values)
    network, rest = _model_section(values, kind)
    shared: dict[str, Any] = {
        "experiment": _read(ExperimentConfig, "experiment", values),
        "dataset": _read(DatasetConfig, "dataset", values),
        "optimizer": _read(OptimizerConfig, "optimizer", values),
        "lr_scheduler": _read(SchedulerConfig, "lr_scheduler", values),
        "training": _read(LoopConfig, "training", values),
    }
    recipe: Recipe
    if kind == "tokenizer":
        losses = _read(TokenizerLossConfig, "losses", values)
        recipe = TokenizerRecipe(**shared, model=from_mapping(TokenizerConfig, network), losses=losses)
    elif kind == "generator":
        recipe = GeneratorRecipe(
            **shared,
            tokenizer=str(rest.pop("tokenizer", "")),
            model=from_mapping(GeneratorConfig, network),
            sampling=_read(SamplingConfig, "sampling", values),
            losses=_read(GeneratorLossConfig, "losses", values),
        )
    else:
        recipe = ClassifierRecipe(**shared, model=from_mapping(ClassifierConfig, network))
    if unknown := [*values, *(f"model.{key}" for key in rest)]:
        raise ConfigError(f"unknown sections in a {kind} recipe: {', '.join(unknown)}")
    return recipe
