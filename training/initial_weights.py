"""Weights that a run starts from (`experiment.init_checkpoint`)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from models.bundle import open_bundle
from models.checkpoint import load_into, read_weights
from training.checkpoints import checkpoint_files, load_checkpoint, newest_checkpoint


def load_initial_weights(network: nn.Module, source: str, bundle_file: str) -> None:
    """Fill `network` from `source`: a run folder or checkpoint (its average), a weights file, or a bundle.

    `bundle_file` is the file of a bundle that holds this network. CheckpointError or BundleError when the
    source cannot be read or does not fit.
    """
    if source:
        load_into(network, initial_weights(source, bundle_file), source)


def initial_weights(source: str, bundle_file: str) -> Mapping[str, Tensor]:
    """The weights by key in `source`, as `load_initial_weights` reads them."""
    path = Path(os.path.expanduser(source))
    if path.is_dir() and checkpoint_files(path) or path.name.startswith("checkpoint-"):
        average: Mapping[str, Tensor] = load_checkpoint(newest_checkpoint(path))["ema"]
        return average
    if path.is_file():
        return read_weights(path)
    return read_weights(open_bundle(source).weights_file(bundle_file))
