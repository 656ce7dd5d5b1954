"""From a trained network to a bundle that the service loads (`maskbit train … --bundle out/`)."""

from __future__ import annotations

import re
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
from models.checkpoint import read_weights
from models.generator import Generator
from models.sampling_config import SamplingConfig
from models.tokenizer import Tokenizer
from training.data.class_names import read_class_names
from training.data.remote import path_of
from training.data.sources import SEPARATOR
from training.frozen_tokenizer import tokenizer_weights
from training.processes import process_count
from training.recipe import GeneratorRecipe, Recipe, TokenizerRecipe

UNSTATED_LICENCE = "not stated"


def tokenizer_manifest(recipe: TokenizerRecipe, name: str, licence: str) -> Manifest:
    """Manifest of a bundle that tokenizes and detokenizes; ConfigError when it cannot be made.

    Where only the decoder of a bundle was trained, tokens are what they were: its generator stays.
    """
    kept = _kept_bundle(recipe)
    return Manifest(
        name=name,
        image_size=recipe.dataset.resolution,
        tokenizer=recipe.model,
        generator=None if kept is None else kept.manifest.generator,
        sampling=SamplingConfig() if kept is None else kept.manifest.sampling,
        class_names=read_class_names(recipe.dataset),
        licence=licence,
        provenance={"tokenizer": _provenance(recipe)}
        if kept is None
        else {**kept.manifest.provenance, "decoder": _provenance(recipe)},
    )


def _kept_bundle(recipe: TokenizerRecipe) -> Bundle | None:
    """The bundle whose decoder alone the recipe trains."""
    return _bundle_at(recipe.experiment.init_checkpoint) if recipe.training.decoder_only else None


def _bundle_at(source: str) -> Bundle | None:
    """The bundle that `source` names; None where it is something else, such as a file of weights."""
    named = source in bundled_names() or source.startswith(HUB_PREFIX)
    is_bundle = named or (Path(source).expanduser() / MANIFEST).exists()
    return open_bundle(source) if is_bundle else None


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
    """Write a bundle that tokenizes and detokenizes, with the generator that `tokenizer_manifest` kept."""
    manifest = tokenizer_manifest(recipe, path.resolve().name, licence)
    weights = {TOKENIZER_WEIGHTS: network.state_dict()}
    kept = _kept_bundle(recipe)
    if kept is not None and kept.manifest.generator is not None:
        weights[GENERATOR_WEIGHTS] = read_weights(kept.weights_file(GENERATOR_WEIGHTS))
    return write_bundle(path, manifest, weights, precision)


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
    loop = recipe.training
    return {
        "recipe": recipe.experiment.name,
        "shards": shard_names(recipe.dataset.train_shards_path_or_url),
        "steps": loop.max_train_steps,
        "batch": loop.per_gpu_batch_size * loop.gradient_accumulation_steps * process_count(),
        "seed": loop.seed,
    }


def shard_names(pattern: str) -> str:
    """The names that `pattern` stands for, without the folders and queries of its parts."""
    # The last slash outside braces ends the folder.
    names = (re.sub(r"^.*/(?![^{]*\})", "", path_of(part).rstrip("/")) for part in pattern.split(SEPARATOR))
    return SEPARATOR.join(names)


def _tokenizer_provenance(recipe: GeneratorRecipe) -> dict[str, Any]:
    """What the tokenizer's bundle says of itself; of bare weights only their file's name is known."""
    source = recipe.experiment.vqgan_checkpoint
    bundle = _bundle_at(source)
    if bundle is None:
        return {"tokenizer": {"weights": Path(source).name}}
    return dict(bundle.manifest.provenance)
