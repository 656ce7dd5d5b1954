"""From published weights to a bundle (`maskbit import`): checked against the networks, then copied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.bundle import GENERATOR_WEIGHTS, TOKENIZER_WEIGHTS, Bundle, Manifest, file_digest
from models.bundle_writer import write_bundle
from models.checkpoint import fitted, read_weights
from models.classes import IMAGENET_CLASSES, imagenet_names, read_names
from models.config import GeneratorConfig
from models.errors import BundleError, ConfigError
from models.networks import build_generator, build_tokenizer
from models.published import PublishedModel, published_model


def read_published(path: Path) -> PublishedModel:
    """The model that the published YAML file `path` describes; ConfigError says what is wrong with it."""
    try:
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError
    except ImportError as exc:
        raise ConfigError(
            f"{path}: YAML files are read by the package OmegaConf (pip install 'maskbit-serve[train]'); "
            "a preset needs none"
        ) from exc
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    except (OmegaConfBaseException, YAMLError, ValueError) as exc:
        raise ConfigError(f"{path}: not a configuration ({' '.join(str(exc).split())[:200]})") from exc
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: a configuration is a mapping of sections")
    try:
        return published_model({str(key): value for key, value in values.items()}, path.stem)
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc}") from exc


def import_model(
    model: PublishedModel,
    out: Path,
    tokenizer: Path,
    generator: Path | None = None,
    *,
    classes: Path | None = None,
    licence: str = "not stated",
    precision: str = "fp32",
) -> Bundle:
    """Write the bundle `out` of weights files; without `generator` it tokenizes and detokenizes only.

    The bundle is called like its folder. Raises ConfigError, CheckpointError that names the keys that do not
    fit, or BundleError; nothing is written then.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BundleError(f"{out} exists; give an empty or a new folder")
    if generator is not None and model.generator is None:
        raise ConfigError(f"{model.name} describes no generator, but {generator} was given as one")
    drawn = model.generator if generator is not None else None
    manifest = Manifest(
        name=out.resolve().name,
        image_size=model.image_size,
        tokenizer=model.tokenizer,
        generator=drawn,
        sampling=model.sampling,
        class_names=_class_names(drawn, classes),
        licence=licence,
    )
    # On the meta device a network has names and shapes but takes no memory.
    with torch.device("meta"):
        networks: dict[str, tuple[nn.Module, Path]] = {
            TOKENIZER_WEIGHTS: (build_tokenizer(model.tokenizer), tokenizer)
        }
        if drawn is not None and generator is not None:
            networks[GENERATOR_WEIGHTS] = (build_generator(drawn), generator)
    weights = {name: _fitted(*pair) for name, pair in networks.items()}
    provenance = {
        "described by": model.name,
        **{Path(name).stem: _source(path) for name, (_, path) in networks.items()},
    }
    return write_bundle(out, replace(manifest, provenance=provenance), weights, precision)


def _fitted(network: nn.Module, path: Path) -> dict[str, Tensor]:
    return fitted(network, read_weights(path), path)


def _source(path: Path) -> dict[str, Any]:
    return {"file": path.name, "sha256": file_digest(path)}


def _class_names(generator: GeneratorConfig | None, file: Path | None) -> tuple[str, ...]:
    if file is not None:
        return read_names(file)
    if generator is None:
        return ()
    if generator.nclass != IMAGENET_CLASSES:
        raise ConfigError(f"the generator draws {generator.nclass} classes; name them in a file of classes")
    return imagenet_names()
