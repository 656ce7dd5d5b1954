"""Many pictures as one."""

import torch
from PIL import Image
from torch import Tensor


def picture_grid(images: Tensor, columns: int) -> Image.Image:
    """One picture of `images` f32 (n, 3, H, W), clamped to [0, 1], row by row."""
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    padded = torch.ones(rows * columns, channels, height, width)
    padded[:n] = images.detach().float().cpu().clamp(0, 1)
    grid = padded.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    return Image.fromarray(
        (grid.reshape(rows * height, columns * width, channels) * 255).round().byte().numpy()
    )
