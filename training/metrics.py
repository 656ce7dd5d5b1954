"""Quality of pictures against their originals (SPEC section 5)."""

import torch
from torch import Tensor


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of every picture: two f32 (B, 3, H, W) in [0, 1] -> (B,)."""
    mse = (images - others).square().mean((1, 2, 3))
    return -10 * torch.log10(mse + 1e-10)
