"""From a trained network to a bundle that the service loads (`maskbit train … --bundle out/`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.bundle import (
    GENERATOR_WEIGHTS,
    HUB_PREFIX,
    MANIFEST,
    TOKENIZER_WEIGHTS,
    Bundle,
    Manifest,
    bundled_names,
    open_bundle,
)
from models.bundle_writer import write_bundle
from models.generator import Generator
from models.sampling_config import SamplingConfig
from models.tokenizer import Tokenizer
from training.class_names import read_class_names
from training.frozen_tokenizer import tokenizer_weights
from training.recipe import GeneratorRecipe, Recipe, TokenizerRecipe

UNSTATED_LICENCE = "not stated"


def tokenizer_manifest(recipe: TokenizerRecipe, name: str, licence: str) -> Manifest:
    """Manifest of a bundle that tokenizes and detokenizes; ConfigError when it cannot be made."""
    return Manifest(
        name=name,
        image_size=recipe.dataset.resolution,
        tokenizer=recipe.model,
        generator=None,
        sampling=SamplingConfig(),
        class_names=read_class_names(recipe.dataset),
        licence=licence,
        provenance={"tokenizer": _provenance(recipe)},
    )


def generator_manifest(recipe: GeneratorRecipe, name: str, licence: str) -> Manifest:
    """Manifest of a whole bundle; ConfigError when networks, data set and class names do not fit together."""
    return Manifest(
        name=name,
        image_size=recipe.dataset.resolution,
        tokenizer=recipe.tokenizer,
        generator=recipe.model,
        sampling=recipe.sampling,
        class_names=read_class_names(recipe.dataset),
        licence=licence,
        provenance={**_tokenizer_provenance(recipe), "generator": _provenance(recipe)},
    )


def publish_tokenizer(
    network: Tokenizer,
    recipe: TokenizerRecipe,
    path: Path,
    *,
    licence: str = UNSTATED_LICENCE,
    precision: str = "fp32",
) -> Bundle:
    """Write a bundle that tokenizes and detokenizes."""
    manifest = tokenizer_manifest(recipe, path.resolve().name, licence)
    return write_bundle(path, manifest, {TOKENIZER_WEIGHTS: network.state_dict()}, precision)


def publish_generator(
    network: Generator,
    recipe: GeneratorRecipe,
    path: Path,
    *,
    licence: str = UNSTATED_LICENCE,
    precision: str = "fp32",
) -> Bundle:
    """Write a whole bundle: the frozen tokenizer that the generator was trained on, and the generator."""
    manifest = generator_manifest(recipe, path.resolve().name, licence)
    weights = {TOKENIZER_WEIGHTS: tokenizer_weights(recipe), GENERATOR_WEIGHTS: network.state_dict()}
    return write_bundle(path, manifest, weights, precision)


def _provenance(recipe: Recipe) -> dict[str, Any]:
    return {
        "recipe": recipe.experiment.name,
        "shards": Path(recipe.dataset.train_shards_path_or_url).name,
        "steps": recipe.training.max_train_steps,
        "batch": recipe.training.per_gpu_batch_size * recipe.training.gradient_accumulation_steps,
        "seed": recipe.training.seed,
    }


def _tokenizer_provenance(recipe: GeneratorRecipe) -> dict[str, Any]:
    """What the tokenizer's bundle says of itself; of bare weights only their file's name is known."""
    source = recipe.experiment.vqgan_checkpoint
    if (Path(source) / MANIFEST).exists() or source in bundled_names() or source.startswith(HUB_PREFIX):
        return dict(open_bundle(source).manifest.provenance)
    return {"tokenizer": {"weights": Path(source).name}}
