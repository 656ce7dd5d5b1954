"""Weights that a run starts from or builds on: those of a run, of a bundle, or of a bare file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models.bundle import GENERATOR_WEIGHTS, TOKENIZER_WEIGHTS, open_bundle
from models.checkpoint import load_into, read_weights
from models.config import GeneratorConfig, TokenizerConfig
from models.validation import require
from training.checkpoints import checkpoint_files, load_checkpoint, newest_checkpoint

# Fields that matter to training alone, or that published files state wrongly; weights fit whatever they say.
NOT_COMPARED = (
    "commitment_cost",
    "entropy_loss_weight",
    "entropy_loss_temperature",
    "entropy_gamma",
    "codebook_size",
    "dropout",
)


@dataclass(frozen=True)
class Source:
    """Weights by key, and what is known of the network they belong to: its configuration, or None."""

    weights: Mapping[str, Tensor]
    config: Mapping[str, Any] | None


def read_source(source: str, bundle_file: str) -> Source:
    """What is at `source`: a run folder or checkpoint (its average), a weights file, or a bundle.

    `bundle_file` is the file of a bundle that holds the network. CheckpointError or BundleError when the
    source cannot be read.
    """
    path = Path(os.path.expanduser(source))
    if (path.is_dir() and checkpoint_files(path)) or path.name.startswith("checkpoint-"):
        state = load_checkpoint(newest_checkpoint(path))
        return Source(state["ema"], state["recipe"]["model"])
    if path.is_file():
        return Source(read_weights(path), None)
    bundle = open_bundle(source)
    parts = {TOKENIZER_WEIGHTS: bundle.manifest.tokenizer, GENERATOR_WEIGHTS: bundle.manifest.generator}
    weights = read_weights(bundle.weights_file(bundle_file))
    config = parts[bundle_file]
    return Source(weights, None if config is None else asdict(config))


def load_initial_weights(
    network: nn.Module, config: TokenizerConfig | GeneratorConfig, source: str, bundle_file: str
) -> None:
    """Fill `network`, which `config` describes, from `source`; an empty one leaves it alone.

    Beyond what `read_source` raises: ConfigError when the source tells of another configuration, which
    shapes of weights need not show; CheckpointError when weights do not fit.
    """
    if not source:
        return
    found = read_source(source, bundle_file)
    for key, own in asdict(config).items():
        if found.config is None or key not in found.config or key in NOT_COMPARED:
            continue
        stored = found.config[key]
        require(
            _plain(stored) == _plain(own),
            f"{source} holds a network with {key} {stored}; the recipe says {own}",
        )
    load_into(network, found.weights, source)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
