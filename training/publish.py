"""From a trained network to a bundle that the service loads (`maskbit train … --bundle out/`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.bundle import GENERATOR_WEIGHTS, TOKENIZER_WEIGHTS, Bundle, Manifest, open_bundle
from models.bundle_writer import write_bundle
from models.checkpoint import read_weights
from models.config import SamplingConfig
from models.generator import LfqBert
from models.tokenizer import ConvTokenizer
from training.config import GeneratorRecipe, Recipe, TokenizerRecipe
from training.data import read_class_names

UNSTATED_LICENCE = "not stated"


def tokenizer_manifest(recipe: TokenizerRecipe, name: str, licence: str) -> Manifest:
    """Manifest of a bundle that tokenizes and detokenizes; ConfigError when it cannot be made."""
    return Manifest(
        name=name,
        image_size=recipe.dataset.image_size,
        tokenizer=recipe.model,
        generator=None,
        sampling=SamplingConfig(),
        class_names=read_class_names(recipe.dataset),
        licence=licence,
        provenance={"tokenizer": _provenance(recipe)},
    )


def generator_manifest(recipe: GeneratorRecipe, name: str, licence: str) -> Manifest:
    """Manifest of a whole bundle; ConfigError when networks, data set and class names do not fit together."""
    source = open_bundle(recipe.tokenizer).manifest
    return Manifest(
        name=name,
        image_size=recipe.dataset.image_size,
        tokenizer=source.tokenizer,
        generator=recipe.model,
        sampling=recipe.sampling,
        class_names=read_class_names(recipe.dataset),
        licence=licence,
        provenance={**source.provenance, "generator": _provenance(recipe)},
    )


def publish_tokenizer(
    network: ConvTokenizer,
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
    network: LfqBert,
    recipe: GeneratorRecipe,
    path: Path,
    *,
    licence: str = UNSTATED_LICENCE,
    precision: str = "fp32",
) -> Bundle:
    """Write a whole bundle: the frozen tokenizer that the generator was trained on, and the generator."""
    manifest = generator_manifest(recipe, path.resolve().name, licence)
    tokenizer = read_weights(open_bundle(recipe.tokenizer).weights_file(TOKENIZER_WEIGHTS))
    weights = {TOKENIZER_WEIGHTS: tokenizer, GENERATOR_WEIGHTS: network.state_dict()}
    return write_bundle(path, manifest, weights, precision)


def _provenance(recipe: Recipe) -> dict[str, Any]:
    return {
        "recipe": recipe.experiment.name,
        "shards": Path(recipe.dataset.train_shards).name,
        "steps": recipe.training.max_train_steps,
        "batch": recipe.training.per_gpu_batch_size,
        "seed": recipe.training.seed,
    }
