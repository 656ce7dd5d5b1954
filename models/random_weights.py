"""A published configuration with random weights: as fast as the trained model, nothing has to be fetched."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from models.bundle import GENERATOR_WEIGHTS, MANIFEST, TOKENIZER_WEIGHTS, Bundle, Manifest, open_bundle
from models.bundle_writer import check_new, write_bundle
from models.classes import imagenet_names
from models.networks import build_generator, build_tokenizer
from models.presets import NAMES, find_preset
from models.published import PublishedModel


@contextmanager
def open_or_make(name: str, keep: Path | None = None) -> Iterator[Bundle]:
    """The bundle `name`, or that preset with random weights, in the folder `keep` or until it is left."""
    if name not in NAMES:
        yield open_bundle(name)
        return
    with tempfile.TemporaryDirectory(prefix="maskbit-") as folder:
        yield random_bundle(find_preset(name).model, (keep or Path(folder) / name).absolute())


def random_bundle(model: PublishedModel, folder: Path, seed: int = 0) -> Bundle:
    """`model` with the weights that training would start from, in the new or empty `folder`.

    If it lies there already, it is opened as it is, with its exports. BundleError for another bundle.
    """
    manifest = _manifest(model, seed)
    if (folder / MANIFEST).exists():
        found = open_bundle(str(folder))
        if replace(found.manifest, files={}) == manifest:
            return found
    check_new(folder)
    return write_bundle(folder, manifest, _weights(model, seed))


def _weights(model: PublishedModel, seed: int) -> dict[str, dict[str, Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights: dict[str, dict[str, Tensor]] = {
            TOKENIZER_WEIGHTS: build_tokenizer(model.tokenizer).state_dict()
        }
        if model.generator is not None:
            weights[GENERATOR_WEIGHTS] = build_generator(model.generator).state_dict()
    return weights


def _manifest(model: PublishedModel, seed: int) -> Manifest:
    return Manifest(
        name=model.name,
        image_size=model.image_size,
        tokenizer=model.tokenizer,
        generator=model.generator,
        sampling=model.sampling,
        class_names=imagenet_names() if model.generator is not None else (),
        licence="none: the weights are random",
        provenance={"weights": f"random, seed {seed}"},
    )
