import numpy as np
import pytest
import torch
from torch import nn

from models.errors import ConfigError
from training.losses.config import DiscriminatorConfig
from training.losses.discriminators import BlurDownsample, build_discriminator


def test_the_blur_keeps_a_constant_picture_and_halves_it() -> None:
    blurred = BlurDownsample(4)(torch.full((1, 2, 8, 10), 3.0))
    assert blurred.shape == (1, 2, 4, 5)
    assert torch.allclose(blurred[:, :, 1:-1, 1:-1], torch.tensor(3.0))


@pytest.mark.parametrize(("taps", "row"), [(3, [1, 2, 1]), (4, [1, 3, 3, 1]), (5, [1, 4, 6, 4, 1])])
def test_the_blur_weighs_by_the_binomial_kernel_with_same_padding(taps: int, row: list[int]) -> None:
    image = np.random.default_rng(0).normal(size=9)
    kernel = np.array(row) / sum(row)
    # One row of a picture that does not change along the other axis, away from its borders.
    total = 4 * 2 + taps - 9
    padded = np.pad(image, (total // 2, total - total // 2))
    wanted = [padded[2 * i : 2 * i + taps] @ kernel for i in range(5)]
    picture = torch.from_numpy(image).float().expand(1, 1, 9, 9)
    assert BlurDownsample(taps)(picture)[0, 0, 2].tolist() == pytest.approx(wanted, abs=1e-6)


def test_without_blur_the_maps_are_averaged_and_hold_no_kernel() -> None:
    config = DiscriminatorConfig(hidden_channels=32, num_stages=2, blur_resample=False)
    network = build_discriminator(config)
    assert not list(network.named_buffers())
    assert sum(isinstance(module, nn.AvgPool2d) for module in network.modules()) == 2


@pytest.mark.parametrize(("size", "stages"), [(64, 4), (256, 2)])
def test_the_map_of_vqganplus_is_16_by_16_for_any_picture(size: int, stages: int) -> None:
    network = build_discriminator(DiscriminatorConfig(hidden_channels=32, num_stages=stages))
    assert network(torch.rand(1, 3, size, size)).shape == (1, 1, 16, 16)


def test_channels_of_patchgan_double_up_to_eight_times_the_first() -> None:
    network = build_discriminator(DiscriminatorConfig(name="Original", hidden_channels=8, num_stages=5))
    widths = [module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert widths == [8, 16, 32, 64, 64, 64, 1]


@pytest.mark.parametrize("name", ["VQGAN+Discriminator", "Original"])
def test_convolutions_start_with_a_deviation_of_two_hundredths(name: str) -> None:
    torch.manual_seed(0)
    network = build_discriminator(DiscriminatorConfig(name=name, hidden_channels=32, num_stages=3))
    weights = [module.weight.flatten() for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert torch.cat(weights).std().item() == pytest.approx(0.02, rel=0.01)
    assert torch.cat(weights).mean().abs() < 2e-4


def test_channels_that_the_norm_cannot_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"hidden_channels is 24; .* multiple of 32"):
        build_discriminator(DiscriminatorConfig(hidden_channels=24))
