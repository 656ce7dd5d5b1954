"""Perceptual losses of stage I: distances of pictures in the features of a trained network (SPEC 4)."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn, tensor

from models.checkpoint import load_into, read_weights
from models.errors import RuntimeUnavailable
from models.validation import require
from training.classifier import Classifier, load_classifier
from training.losses.config import TokenizerLossConfig
from training.losses.lpips import load_lpips, lpips_of, unit_length

IMAGENET_SIZE = 224
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Builder and published weights in torchvision, and the module whose output is compared beside the logits.
IMAGENET_NETWORKS = {
    "resnet50": ("resnet50", "ResNet50_Weights", "layer4"),
    "convnext_s": ("convnext_small", "ConvNeXt_Small_Weights", "features"),
}


def _mean_square(one: Tensor, other: Tensor) -> Tensor:
    return (one.float() - other.float()).square().flatten(1).mean(1)


class ImageNetDistance(nn.Module):
    """Mean squared difference (B,) of the logits of an ImageNet classifier, for f32 (B, 3, H, W) in [0, 1].

    With a `layer`, a module of the `network`, that of its output is added.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, layer: nn.Module | None) -> None:
        super().__init__()
        self.network = network
        self._seen: list[Tensor] = []
        if layer is not None:
            layer.register_forward_hook(lambda module, inputs, output: self._seen.append(output))
        self.register_buffer("mean", tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def outputs(self, images: Tensor) -> list[Tensor]:
        """The features, where they are compared, and the logits."""
        resized = F.interpolate(images, (IMAGENET_SIZE, IMAGENET_SIZE), mode="bilinear", antialias=True)
        logits = self.network((resized - self.mean) / self.std)
        found = [*self._seen, logits]
        self._seen.clear()
        return found

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        total = images.new_zeros(len(images))
        for own, other in zip(self.outputs(images), self.outputs(others), strict=True):
            total = total + _mean_square(own, other)
        return total


class ClassifierDistance(nn.Module):
    """Distance (B,) in a `Classifier` of one's own, for f32 (B, 3, H, W) in [0, 1] at its training size.

    Mean squared difference of the logits or, with `features`, of the maps of all units at unit length, as in
    LPIPS. Logits say what the picture shows as a whole, of which a small classifier is sure long before the
    picture is right; maps keep the place of each difference. On 64x64 pictures of fruit the maps' gradient
    lies four times nearer to the direction of the original than that of logits or of pooled features.
    """

    def __init__(self, network: Classifier, *, features: bool) -> None:
        super().__init__()
        self.network = network
        self.features = features

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        if not self.features:
            return _mean_square(self.network(images), self.network(others))
        total = images.new_zeros(len(images))
        for own, other in zip(self.network.stages(images), self.network.stages(others), strict=True):
            squares = (unit_length(own.float()) - unit_length(other.float())).square()
            total = total + squares.sum(1).mean((1, 2))
        return total


def load_perceptual(config: TokenizerLossConfig) -> nn.Module | None:
    """The perceptual distance of `config`, frozen and in eval mode; None where there is none.

    Called with pictures and reconstructions f32 (B, 3, H, W) in [0, 1], it gives distances (B,). Raises
    RuntimeUnavailable without torchvision where that is needed, CheckpointError for weights that misfit.
    """
    kind, path = config.perceptual_loss, config.perceptual_checkpoint
    if kind == "none":
        return None
    if kind == "classifier":
        require(
            bool(path), "losses.perceptual_checkpoint is missing; it names the run folder of a classifier"
        )
        network: nn.Module = ClassifierDistance(
            load_classifier(Path(path)), features=not config.perceptual_loss_on_logits
        )
    elif kind == "lpips":
        network = _lpips(path, config.perceptual_linear_checkpoint)
    else:
        network = _imagenet_distance(kind, path, features=not config.perceptual_loss_on_logits)
    return network.eval().requires_grad_(False)


def _lpips(path: str, linear_path: str) -> nn.Module:
    require(
        bool(linear_path),
        "losses.perceptual_linear_checkpoint is missing; it names the linear layers of LPIPS, vgg.pth of the "
        "package lpips",
    )
    if path:
        return load_lpips(Path(path), Path(linear_path))
    networks = _torchvision_models("lpips without losses.perceptual_checkpoint")
    vgg = networks.vgg16(weights=networks.VGG16_Weights.IMAGENET1K_V1)
    return lpips_of(vgg.state_dict(), "torchvision's VGG16", Path(linear_path))


def _imagenet_distance(kind: str, path: str, *, features: bool) -> ImageNetDistance:
    builder, published, layer = IMAGENET_NETWORKS[kind]
    networks: Any = _torchvision_models(kind)
    if path:
        network = getattr(networks, builder)(weights=None)
        load_into(network, read_weights(Path(path)), path)
    else:
        network = getattr(networks, builder)(weights=getattr(networks, published).IMAGENET1K_V1)
    return ImageNetDistance(network, getattr(network, layer) if features else None)


def _torchvision_models(wanted: str) -> ModuleType:
    try:
        return import_module("torchvision.models")
    except (ImportError, RuntimeError) as exc:  # a build for another PyTorch fails as it registers operators
        raise RuntimeUnavailable(
            f"losses.perceptual_loss {wanted} needs torchvision, which cannot be imported ({exc}); install "
            "the build for your PyTorch, or train a network of your own: losses.perceptual_loss=classifier"
        ) from exc
