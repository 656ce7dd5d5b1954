from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from training.evaluation.reconstruction_metrics import mae, mse, psnr, ssim


def pictures(seed: int, shape: tuple[int, ...] = (3, 3, 24, 33)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(shape, generator=generator)
    return images, (images + 0.2 * torch.randn(shape, generator=generator)).clamp(0, 1)


def test_psnr_is_that_of_torchmetrics_for_every_picture() -> None:
    images, others = pictures(1)
    expected = [peak_signal_noise_ratio(b, a, data_range=1.0) for a, b in zip(images, others, strict=True)]
    torch.testing.assert_close(psnr(images, others), torch.stack(expected), rtol=1e-5, atol=0)


def test_ssim_is_the_mean_of_the_whole_map_of_torchmetrics() -> None:
    images, others = pictures(2)
    found = structural_similarity_index_measure(
        others, images, data_range=1.0, sigma=1.5, return_full_image=True, reduction="none"
    )
    assert isinstance(found, tuple)
    torch.testing.assert_close(ssim(images, others), found[1].mean((1, 2, 3)), rtol=0, atol=2e-6)


def test_equal_pictures_are_at_no_distance() -> None:
    images, _ = pictures(3)
    assert mae(images, images).tolist() == mse(images, images).tolist() == [0, 0, 0]
    assert ssim(images, images).tolist() == pytest.approx([1, 1, 1])
    assert psnr(images, images).tolist() == pytest.approx([100, 100, 100])


def test_every_picture_is_measured_by_itself() -> None:
    images, others = pictures(4)
    for measure in (mae, mse, psnr, ssim):
        whole = measure(images, others)
        alone = torch.cat([measure(images[i : i + 1], others[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(whole, alone)
