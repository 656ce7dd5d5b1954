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


def publish_tokenizer(
    network: ConvTokenizer, recipe: TokenizerRecipe, path: Path, *, licence: str = UNSTATED_LICENCE
) -> Bundle:
    """Write a bundle that tokenizes and detokenizes."""
    manifest = Manifest(
        name=path.name,
        image_size=recipe.dataset.image_size,
        tokenizer=recipe.model,
        generator=None,
        sampling=SamplingConfig(),
        class_names=read_class_names(recipe.dataset),
        licence=licence,
        provenance={"tokenizer": _provenance(recipe)},
    )
    return write_bundle(path, manifest, {TOKENIZER_WEIGHTS: network.state_dict()})


def publish_generator(
    network: LfqBert, recipe: GeneratorRecipe, path: Path, *, licence: str = UNSTATED_LICENCE, precision: str = "fp32"
) -> Bundle:
    """Write a whole bundle: the frozen tokenizer that the generator was trained on, and the generator."""
    source = open_bundle(recipe.tokenizer)
    tokenizer = read_weights(source.weights_file(TOKENIZER_WEIGHTS))
    manifest = Manifest(
        name=path.name,
        image_size=recipe.dataset.image_size,
        tokenizer=source.manifest.tokenizer,
        generator=recipe.model,
        sampling=recipe.sampling,
        class_names=read_class_names(recipe.dataset),
        licence=licence,
        provenance={**source.manifest.provenance, "generator": _provenance(recipe)},
    )
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
