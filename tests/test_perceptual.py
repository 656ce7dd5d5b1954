import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import CheckpointError, ConfigError, RuntimeUnavailable
from training.classifier import Classifier, load_classifier
from training.losses.config import TokenizerLossConfig
from training.losses.lpips import LAYERS, Lpips
from training.losses.perceptual import ClassifierDistance, ImageNetDistance, load_perceptual
from training.recipe import ClassifierConfig

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class StandInNetwork(nn.Module):
    """Has the one module of torchvision's ResNet-50 or ConvNeXt that is read by name, and little else."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer
        self.add_module(layer, nn.Sequential(nn.Conv2d(3, 4, 7, 32), nn.BatchNorm2d(4), nn.ReLU()))
        self.fc = nn.Linear(4, 10)
        self.sizes: list[torch.Size] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(x.shape[2:])
        logits: Tensor = self.fc(self.get_submodule(self.layer)(x).mean((2, 3)))
        return logits


class StandInVgg(nn.Module):
    """Has the keys of torchvision's VGG16."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Lpips().features
        self.classifier = nn.Linear(4, 2)


def stand_in_torchvision() -> ModuleType:
    """`torchvision.models` in miniature: what is tested is which builder and weights are asked for, and how.

    The real one is built for CUDA and cannot be imported beside a CPU build of PyTorch.
    """

    def builder(make: Any, published: Any) -> Any:
        def build(*, weights: object) -> nn.Module:
            torch.manual_seed(7 if weights is published.IMAGENET1K_V1 else 8)
            network: nn.Module = make()
            return network

        return build

    models = ModuleType("torchvision.models")
    for name, enumeration, make in (
        ("resnet50", "ResNet50_Weights", lambda: StandInNetwork("layer4")),
        ("convnext_small", "ConvNeXt_Small_Weights", lambda: StandInNetwork("features")),
        ("vgg16", "VGG16_Weights", StandInVgg),
    ):
        published = type(enumeration, (), {"IMAGENET1K_V1": object()})
        setattr(models, enumeration, published)
        setattr(models, name, builder(make, published))
    return models


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    models = stand_in_torchvision()
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    return models


def config(**values: Any) -> TokenizerLossConfig:
    return TokenizerLossConfig(**{f"perceptual_{key}": value for key, value in values.items()})


def pictures(seed: int, size: int = 64) -> Tensor:
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def published_distance(network: nn.Module, images: Tensor, others: Tensor, layer: str | None) -> float:
    """The formula, with resizing and normalising written out."""
    prepared = [
        (
            F.interpolate(x, size=224, mode="bilinear", antialias=True, align_corners=False)
            - MEAN[None, :, None, None]
        )
        / STD[None, :, None, None]
        for x in (images, others)
    ]
    total = (network(prepared[0]) - network(prepared[1])).square().mean()
    if layer is not None:
        part = network.get_submodule(layer)
        total = total + (part(prepared[0]) - part(prepared[1])).square().mean()
    return float(total)


@pytest.mark.parametrize(("kind", "layer"), [("resnet50", "layer4"), ("convnext_s", "features")])
@pytest.mark.parametrize("on_logits", [True, False])
@pytest.mark.usefixtures("torchvision")
def test_imagenet_networks_compare_logits_and_if_wanted_features(
    kind: str, layer: str, on_logits: bool
) -> None:
    network = load_perceptual(config(loss=kind, loss_on_logits=on_logits))
    assert isinstance(network, ImageNetDistance)
    distances = network(pictures(0), pictures(1))
    assert distances.shape == (3,)
    assert isinstance(network.network, StandInNetwork)
    assert set(network.network.sizes) == {(224, 224)}
    torch.manual_seed(7)
    same = StandInNetwork(layer).eval()
    wanted = published_distance(same, pictures(0), pictures(1), None if on_logits else layer)
    assert distances.mean().item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.usefixtures("torchvision")
def test_weights_of_an_imagenet_network_may_come_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(3)
    given = StandInNetwork("layer4").eval()
    torch.save(given.state_dict(), tmp_path / "resnet50.pth")
    network = load_perceptual(config(loss="resnet50", checkpoint=str(tmp_path / "resnet50.pth")))
    assert network is not None
    wanted = published_distance(given, pictures(0), pictures(1), None)
    assert network(pictures(0), pictures(1)).mean().item() == pytest.approx(wanted, rel=1e-5)
    torch.save({"fc.weight": torch.zeros(10, 4)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth does not fit"):
        load_perceptual(config(loss="resnet50", checkpoint=str(tmp_path / "other.pth")))


def linear_layers(path: Path) -> str:
    widths = (64, 128, 256, 512, 512)
    torch.save({f"lin{i}.model.1.weight": torch.ones(1, width, 1, 1) for i, width in enumerate(widths)}, path)
    return str(path)


@pytest.mark.usefixtures("torchvision")
def test_lpips_takes_vgg_from_torchvision_or_from_a_file(tmp_path: Path) -> None:
    linear = linear_layers(tmp_path / "linear.pth")
    torch.manual_seed(7)
    torch.save(StandInVgg().state_dict(), tmp_path / "vgg16.pth")
    downloaded = load_perceptual(config(loss="lpips", linear_checkpoint=linear))
    read = load_perceptual(
        config(loss="lpips", checkpoint=str(tmp_path / "vgg16.pth"), linear_checkpoint=linear)
    )
    assert isinstance(downloaded, Lpips)
    assert isinstance(read, Lpips)
    distances = downloaded(pictures(0, 32), pictures(1, 32))
    assert distances.min() > 0
    assert torch.equal(read(pictures(0, 32), pictures(1, 32)), distances)
    assert len(LAYERS) == 17


def test_lpips_says_which_file_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"perceptual_linear_checkpoint is missing; .* package lpips"):
        load_perceptual(config(loss="lpips"))


@pytest.mark.parametrize("kind", ["resnet50", "convnext_s"])
def test_without_torchvision_one_line_says_what_to_do(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.models", raising=False)
    with pytest.raises(RuntimeUnavailable, match=f"perceptual_loss {kind} needs torchvision"):
        load_perceptual(config(loss=kind))


def test_no_perceptual_loss_is_no_network() -> None:
    assert load_perceptual(config(loss="none")) is None


def classifier(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(ClassifierConfig(widths=(8, 16, 24), num_classes=5)).eval()


def written_classifier(folder: Path, network: Classifier) -> Path:
    """The part of a run's checkpoint that is read."""
    model = {"widths": network.config.widths, "num_classes": network.config.num_classes}
    nothing: dict[str, Any] = {}
    content = {
        "recipe": {"model": model},
        "step": 3,
        "networks": nothing,
        "ema": network.state_dict(),
        "ema_updates": 3,
        "optimizers": nothing,
        "position": nothing,
    }
    folder.mkdir()
    torch.save(content, folder / "checkpoint-00000003.pt")
    return folder


def test_a_classifier_of_ones_own_is_read_from_its_run(tmp_path: Path) -> None:
    folder = written_classifier(tmp_path / "run", classifier())
    for path in (folder, folder / "checkpoint-00000003.pt"):
        network = load_classifier(path)
        assert torch.equal(network(pictures(0)), classifier()(pictures(0)))
        assert not network.training
    perceptual = load_perceptual(config(loss="classifier", checkpoint=str(folder)))
    assert perceptual is not None
    wanted = (classifier()(pictures(0)) - classifier()(pictures(1))).square().mean(1)
    assert torch.allclose(perceptual(pictures(0), pictures(1)), wanted)
    with pytest.raises(ConfigError, match="perceptual_checkpoint is missing"):
        load_perceptual(config(loss="classifier"))


def test_a_run_of_another_network_is_no_classifier(tmp_path: Path) -> None:
    folder = written_classifier(tmp_path / "run", classifier())
    file = folder / "checkpoint-00000003.pt"
    content = torch.load(file, weights_only=True)
    content["recipe"]["model"] = {"token_size": 4}
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"is no classifier; `maskbit train perceptual`"):
        load_classifier(folder)


def test_features_of_the_classifier_are_compared_by_their_angle_at_every_place() -> None:
    network = classifier()
    images, others = pictures(0), pictures(1)
    distances = ClassifierDistance(network, features=True)(images, others)
    wanted = torch.zeros(3)
    for own, other in zip(network.stages(images), network.stages(others), strict=True):
        # Unit vectors have the squared difference 2 - 2 cos.
        wanted += 2 - 2 * F.cosine_similarity(own, other, dim=1).mean((1, 2))
    assert torch.allclose(distances, wanted, rtol=1e-4)
    assert [tuple(stage.shape[1:]) for stage in network.stages(images)] == [
        (8, 32, 32),
        (16, 16, 16),
        (24, 8, 8),
    ]


@pytest.mark.parametrize("features", [False, True])
def test_a_perceptual_network_is_frozen_and_passes_gradients_on(features: bool, tmp_path: Path) -> None:
    folder = written_classifier(tmp_path / "run", classifier())
    network = load_perceptual(config(loss="classifier", checkpoint=str(folder), loss_on_logits=not features))
    assert network is not None
    assert not network.training
    others = pictures(1).requires_grad_()
    network(pictures(0), others).sum().backward()
    assert others.grad is not None
    assert others.grad.abs().max() > 0
    assert all(not p.requires_grad and p.grad is None for p in network.parameters())
    assert network(pictures(0), pictures(0)).tolist() == [0, 0, 0]
