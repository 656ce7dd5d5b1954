"""Augmentation of training pictures and the fixed fit of evaluation pictures (Pillow, NumPy)."""

import math

import numpy as np
from PIL import Image, ImageOps

from training.config import DatasetConfig

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
ATTEMPTS = 10  # random boxes tried before the centre is taken


def crop_box(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Random (left, top, right, bottom) in a picture of `size` (width, height).

    The area is a share in `scale` of the picture, width/height is log-uniform in `ratio`.
    """
    width, height = size
    for _ in range(ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    side = min(size)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def random_crop(image: Image.Image, config: DatasetConfig, rng: np.random.Generator) -> Image.Image:
    """A random crop of `image` at `config.image_size`, mirrored half of the time when `config.flip`."""
    box = crop_box(image.size, config.crop_scale, config.crop_ratio, rng)
    size = (config.image_size, config.image_size)
    if box != (0, 0, *image.size) or image.size != size:
        image = image.resize(size, FILTERS[config.interpolation], box=box)
    if config.flip and rng.random() < 0.5:
        image = ImageOps.mirror(image)
    return image


def center_fit(image: Image.Image, size: int) -> Image.Image:
    """`image` resized on its short side and centre-cropped to `size` x `size` pixels."""
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
