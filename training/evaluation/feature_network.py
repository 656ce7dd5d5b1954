"""Networks whose features pictures are compared in: the Inception of 2015, or the user's own classifier."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from models.bundle import HUB_PREFIX, file_digest
from models.errors import CheckpointError, ConfigError
from models.runtime.torch_runtime import full_precision
from training.checkpoints import newest_checkpoint
from training.classifier import load_classifier
from training.evaluation.inception import SPATIAL_CHANNELS, load_inception

INCEPTION = "inception"


@dataclass(frozen=True)
class Features:
    """Of B pictures, f32 on the network's device: `pooled` (B, D), `logits` (B, C), `spatial` (B, S)."""

    pooled: Tensor
    logits: Tensor
    spatial: Tensor


class FeatureNetwork(Protocol):
    """A network in eval mode."""

    @property
    def name(self) -> str:
        """What a report calls it; it includes the first digits of the weights' SHA-256."""

    @property
    def published(self) -> bool:
        """Whether published scores are measured in these features."""

    def __call__(self, images: Tensor) -> Features:
        """Features of u8 (B, 3, H, W)."""


class InceptionFeatures:
    """The network of the published FID, sFID and Inception Score."""

    published = True

    def __init__(self, path: Path, device: torch.device | str) -> None:
        self._network = load_inception(path).to(device)
        self._device = device
        self.name = f"Inception 2015 ({file_digest(path)[:12]})"

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Features:
        with full_precision():
            return Features(*self._network(images.to(self._device)))


class ClassifierFeatures:
    """A classifier's pooled features, and the first channels of the map that they are pooled from."""

    published = False

    def __init__(self, path: Path, device: torch.device | str) -> None:
        file = newest_checkpoint(path)
        self._network = load_classifier(file).to(device)
        self._device = device
        self.name = f"classifier {file.parent.name}/{file.stem} ({file_digest(file)[:12]})"

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Features:
        maps = self._network.maps(images.to(self._device).float() / 255)
        pooled = maps.mean((2, 3))
        spatial = maps[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        return Features(pooled, self._network.head_of(maps), spatial)


def open_features(
    name: str, inception_weights: str | None, device: torch.device | str
) -> InceptionFeatures | ClassifierFeatures:
    """The network `inception`, with weights from a path or `hf://owner/name/file`, or that of a run folder.

    Raises ConfigError or CheckpointError that says what is missing.
    """
    if name != INCEPTION:
        return ClassifierFeatures(Path(name), device)
    if inception_weights is None:
        raise ConfigError(
            "the features 'inception' need --inception-weights: a path or hf://owner/name/file of "
            "pt_inception-2015-12-05; a run folder of `maskbit train perceptual` serves as features too"
        )
    return InceptionFeatures(weights_path(inception_weights), device)


def weights_path(ref: str) -> Path:
    """`ref` as a local file, downloaded when it is `hf://owner/name/file`; CheckpointError when it fails."""
    if not ref.startswith(HUB_PREFIX):
        return Path(ref)
    owner, _, rest = ref.removeprefix(HUB_PREFIX).partition("/")
    name, _, file = rest.partition("/")
    if not (owner and name and file):
        raise CheckpointError(f"{ref}: the form is hf://owner/name/file")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(f"{owner}/{name}", file))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as exc:
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise CheckpointError(f"{ref} cannot be loaded from the Hub: {reason}") from exc
