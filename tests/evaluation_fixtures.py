"""A small classifier on disk for the tests of evaluation."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from training.checkpoints import CONTENT
from training.classifier import Classifier
from training.recipe import ClassifierConfig


def write_classifier(folder: Path, classes: int, seed: int = 0) -> Path:
    """A run folder with a checkpoint of a classifier with random weights."""
    config = ClassifierConfig(widths=(8, 16), num_classes=classes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Classifier(config)
    state = dict.fromkeys(CONTENT) | {"recipe": {"model": asdict(config)}, "ema": network.state_dict()}
    folder.mkdir(parents=True)
    torch.save(state, folder / "checkpoint-00000001.pt")
    return folder
