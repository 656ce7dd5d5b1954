from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import CheckpointError
from training.losses.lpips import LAYERS, WIDTHS, Lpips, load_lpips, unit_length

Weights = dict[str, Tensor]
# Where torchvision's VGG16 keeps its convolutions, and after how many of them features are compared.
CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
COMPARED_AFTER = {2: 0, 4: 1, 7: 2, 10: 3, 13: 4}


@pytest.fixture(scope="module")
def vgg() -> Weights:
    """Random weights in the layout of torchvision's vgg16, its classifier included."""
    generator = torch.Generator().manual_seed(0)
    widths = [layer for layer in LAYERS if isinstance(layer, int)]
    weights: Weights = {"classifier.6.bias": torch.zeros(1000)}
    for number, before, width in zip(CONVOLUTIONS, [3, *widths], widths, strict=False):
        scale = (2 / (9 * before)) ** 0.5
        weights[f"features.{number}.weight"] = scale * torch.randn(width, before, 3, 3, generator=generator)
        weights[f"features.{number}.bias"] = 0.1 * torch.randn(width, generator=generator)
    return weights


@pytest.fixture(scope="module")
def linear() -> Weights:
    """Random weights in the layout of the published linear layers."""
    generator = torch.Generator().manual_seed(1)
    return {
        f"lin{stage}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for stage, width in enumerate(WIDTHS)
    }


@pytest.fixture(scope="module")
def network(vgg: Weights, linear: Weights, tmp_path_factory: pytest.TempPathFactory) -> Lpips:
    return load_lpips(*written(tmp_path_factory.mktemp("lpips"), vgg, linear))


def written(folder: Path, vgg: Weights, linear: Weights) -> tuple[Path, Path]:
    torch.save(vgg, folder / "vgg16.pth")
    torch.save(linear, folder / "vgg.pth")
    return folder / "vgg16.pth", folder / "vgg.pth"


def pictures(seed: int) -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def reference(vgg: Weights, linear: Weights, images: Tensor, others: Tensor) -> np.ndarray:
    """The formula of the paper, written out in float64."""
    total = np.zeros(len(images))
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1).double()
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1).double()
    x = torch.cat([images, others]).double().mul(2).sub(1).sub(shift).div(scale)
    for count, number in enumerate(CONVOLUTIONS, start=1):
        weight, bias = vgg[f"features.{number}.weight"], vgg[f"features.{number}.bias"]
        x = F.conv2d(x, weight.double(), bias.double(), padding=1).clamp_min(0)
        if count not in COMPARED_AFTER:
            continue
        stage = COMPARED_AFTER[count]
        features = x.numpy()
        features = features / (np.sqrt((features**2).sum(1, keepdims=True)) + 1e-10)
        one, other = np.split(features, 2)
        weights = linear[f"lin{stage}.model.1.weight"].double().numpy()
        total += ((one - other) ** 2 * weights).sum(1).mean((1, 2))
        x = F.max_pool2d(x, 2)
    return total


def test_distances_are_those_of_the_formula(network: Lpips, vgg: Weights, linear: Weights) -> None:
    images, others = pictures(0), pictures(1)
    distances = network(images, others)
    assert distances.tolist() == pytest.approx(reference(vgg, linear, images, others).tolist(), rel=1e-5)
    assert network(images, images).tolist() == [0, 0]
    assert torch.allclose(network(others, images), distances, rtol=1e-6)


def test_the_network_is_frozen_and_passes_gradients_on(network: Lpips) -> None:
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    others = pictures(1).requires_grad_()
    network(pictures(0), others).sum().backward()
    assert others.grad is not None
    assert others.grad.abs().max() > 0


def test_places_without_any_feature_have_a_finite_gradient() -> None:
    features = torch.zeros(1, 3, 2, 2, requires_grad=True)
    unit_length(features).square().sum().backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_linear_layers_may_also_be_named_plainly(
    network: Lpips, vgg: Weights, linear: Weights, tmp_path: Path
) -> None:
    plain = {key.replace(".model.1", ""): value for key, value in linear.items()}
    same = load_lpips(*written(tmp_path, vgg, plain))
    assert torch.equal(same(pictures(0), pictures(1)), network(pictures(0), pictures(1)))


def test_files_that_do_not_fit_are_named(vgg: Weights, linear: Weights, tmp_path: Path) -> None:
    paths = written(tmp_path, vgg, {**linear, "lin5.model.1.weight": torch.zeros(1, 4, 1, 1)})
    with pytest.raises(CheckpointError, match=r"vgg\.pth does not fit .* unexpected 5"):
        load_lpips(*paths)
    paths = written(tmp_path, {key: value for key, value in vgg.items() if "28" not in key}, linear)
    with pytest.raises(CheckpointError, match=r"vgg16\.pth does not fit .* missing 28\.weight, 28\.bias"):
        load_lpips(*paths)
