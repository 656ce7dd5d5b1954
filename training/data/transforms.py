"""Augmentation of training pictures and the fixed fit of evaluation pictures (Pillow, NumPy)."""

import math

import numpy as np
from PIL import Image, ImageOps

from training.data.config import DatasetConfig

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
    """A crop of `image` at `config.resolution`, mirrored half of the time when `config.flip`.

    The crop is random, or the centre one when `config.use_random_crop` is off.
    """
    if config.use_random_crop:
        box = crop_box(image.size, (config.min_scale, 1.0), config.crop_ratio, rng)
        size = (config.resolution, config.resolution)
        if box != (0, 0, *image.size) or image.size != size:
            image = image.resize(size, FILTERS[config.interpolation], box=box)
    else:
        image = center_fit(image, config.resolution, config.interpolation)
    if config.flip and rng.random() < 0.5:
        image = ImageOps.mirror(image)
    return image


def crop_source_side(config: DatasetConfig) -> int:
    """Pixels along the short side of a picture that give any crop two for each of its own."""
    narrowest = min(config.crop_ratio[0], 1 / config.crop_ratio[1])
    share = math.sqrt(config.min_scale * narrowest) if config.use_random_crop else 1.0
    return math.ceil(2 * config.resolution / share)


def center_fit(image: Image.Image, size: int, interpolation: str = "bicubic") -> Image.Image:
    """`image` resized on its short side and centre-cropped to `size` x `size` pixels."""
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), FILTERS[interpolation])
