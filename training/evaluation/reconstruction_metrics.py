"""How near a picture is to its original: MAE, MSE, PSNR and SSIM of every pair (SPEC section 5).

All functions take two f32 (B, 3, H, W) in [0, 1] and return (B,).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 11  # pixels along each side of the Gaussian window of SSIM
SIGMA = 1.5  # its standard deviation in pixels
C1, C2 = 0.01**2, 0.03**2  # of Wang et al. 2004, for pictures whose range is 1


def mae(images: Tensor, others: Tensor) -> Tensor:
    """Mean absolute error of every picture."""
    return (images - others).abs().mean((1, 2, 3))


def mse(images: Tensor, others: Tensor) -> Tensor:
    """Mean squared error of every picture."""
    return (images - others).square().mean((1, 2, 3))


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of every picture in dB; 100 dB for equal ones."""
    return -10 * torch.log10(mse(images, others) + 1e-10)


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity of every picture (Wang et al. 2004), averaged over the whole map.

    Borders are reflected, which needs sides of at least 6 pixels.
    """
    together = torch.cat([images, others, images * images, others * others, images * others])
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = _blurred(together).chunk(5)
    var_x, var_y = mean_xx - mean_x**2, mean_yy - mean_y**2
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * (mean_xy - mean_x * mean_y) + C2) / (var_x + var_y + C2)
    return (luminance * structure).mean((1, 2, 3))


def _blurred(x: Tensor) -> Tensor:
    """`x` (B, C, H, W) under the Gaussian window, of the same shape."""
    channels, half = x.shape[1], WINDOW // 2
    offsets = torch.arange(-half, half + 1, dtype=x.dtype, device=x.device)
    weights = torch.exp(-((offsets / SIGMA) ** 2) / 2)
    weights = (weights / weights.sum()).expand(channels, 1, WINDOW)
    x = F.pad(x, (half, half, half, half), mode="reflect")
    x = F.conv2d(x, weights[:, :, :, None], groups=channels)
    return F.conv2d(x, weights[:, :, None, :], groups=channels)
