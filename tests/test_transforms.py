import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from training.data.config import DatasetConfig
from training.data.pictures import to_rgb
from training.data.transforms import center_fit, crop_box, crop_source_side, random_crop


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth random picture."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def config(**changes: Any) -> DatasetConfig:
    return DatasetConfig(
        train_shards_path_or_url="t",
        eval_shards_path_or_url="v",
        resolution=16,
        **{"min_scale": 1.0, **changes},
    )


@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    scale=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(sorted),
    seed=st.integers(0, 2**32),
)
def test_a_crop_lies_inside_the_picture(
    size: tuple[int, int], scale: list[float], ratio: list[float], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    left, top, right, bottom = crop_box(size, (scale[0], scale[1]), (ratio[0], ratio[1]), rng)
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]


@given(seed=st.integers(0, 2**32))
def test_area_and_aspect_of_a_crop_keep_to_the_recipe(seed: int) -> None:
    scale, ratio = (0.3, 0.7), (0.75, 4 / 3)
    left, top, right, bottom = crop_box((1000, 1000), scale, ratio, np.random.default_rng(seed))
    width, height = right - left, bottom - top
    assert scale[0] - 0.003 < width * height / 1e6 < scale[1] + 0.003
    assert ratio[0] - 0.003 < width / height < ratio[1] + 0.003


def test_crops_reach_every_border_and_both_kinds_of_aspect() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([crop_box((50, 40), (0.5, 1), (0.75, 4 / 3), rng) for _ in range(2000)])
    assert boxes.min(0)[:2].tolist() == [0, 0]
    assert boxes.max(0)[2:].tolist() == [50, 40]
    aspects = np.log((boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1]))
    assert (aspects > 0.1).any()
    assert (aspects < -0.1).any()


def test_a_picture_too_narrow_for_any_box_gives_its_centre() -> None:
    assert crop_box((100, 10), (0.9, 1), (1, 1), np.random.default_rng(0)) == (45, 0, 55, 10)


def test_a_full_square_crop_leaves_the_pixels_alone() -> None:
    image = picture(16, 16)
    whole = config(use_aspect_ratio_aug=False, flip=False)
    assert random_crop(image, whole, np.random.default_rng(0)).tobytes() == image.tobytes()


def test_half_of_the_pictures_are_mirrored() -> None:
    image = picture(16, 16)
    whole = config(use_aspect_ratio_aug=False)
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()
    results = [random_crop(image, whole, np.random.default_rng(seed)).tobytes() for seed in range(400)]
    assert set(results) == {image.tobytes(), mirrored}
    assert abs(results.count(mirrored) - 200) < 50  # five standard deviations


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_crop_equals_cutting_and_an_antialiased_resize(interpolation: str) -> None:
    image = picture(90, 70)
    settings = config(min_scale=0.3, interpolation=interpolation, flip=False)
    result = np.asarray(random_crop(image, settings, np.random.default_rng(5)), dtype=np.float64)
    box = crop_box(image.size, (0.3, 1.0), settings.crop_ratio, np.random.default_rng(5))
    cut = torch.from_numpy(np.asarray(image)[box[1] : box[3], box[0] : box[2]].copy()).permute(2, 0, 1)
    expected = F.interpolate(cut[None].double(), (16, 16), mode=interpolation, antialias=True)
    # Pillow reads a little beyond the box for its filter, so the outermost pixels differ.
    difference = np.abs(result - expected[0].clamp(0, 255).permute(1, 2, 0).numpy())
    assert difference[1:-1, 1:-1].max() < 2


def test_a_centre_fit_equals_cutting_the_middle_and_an_antialiased_resize() -> None:
    image = picture(90, 70)
    result = np.asarray(center_fit(image, 32), dtype=np.float64)
    middle = torch.from_numpy(np.asarray(image)[:, 10:80].copy()).permute(2, 0, 1)
    expected = F.interpolate(middle[None].double(), (32, 32), mode="bicubic", antialias=True)
    difference = np.abs(result - expected[0].clamp(0, 255).permute(1, 2, 0).numpy())
    assert difference[:, 1:-1].max() < 2


def test_a_centre_fit_of_a_fitting_picture_is_the_picture() -> None:
    image = picture(20, 20)
    assert center_fit(image, 20).tobytes() == image.tobytes()


@given(st.integers(1, 60), st.integers(1, 60))
def test_a_centre_fit_has_the_wanted_size(width: int, height: int) -> None:
    assert center_fit(picture(width, height), 12).size == (12, 12)


def test_without_random_crops_the_centre_is_taken_by_the_wanted_filter() -> None:
    image = picture(90, 70)
    for interpolation in ("bilinear", "bicubic"):
        settings = config(use_random_crop=False, interpolation=interpolation, flip=False)
        result = random_crop(image, settings, np.random.default_rng(0))
        assert result.tobytes() == center_fit(image, 16, interpolation).tobytes()
    settings = config(use_random_crop=False, interpolation=interpolation)
    results = {random_crop(image, settings, np.random.default_rng(seed)).tobytes() for seed in range(20)}
    assert results == {result.tobytes(), result.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()}


@pytest.mark.parametrize("random", [True, False])
def test_a_small_picture_is_enlarged(random: bool) -> None:
    settings = config(use_random_crop=random, use_aspect_ratio_aug=False, flip=False)
    result = np.asarray(random_crop(picture(8, 8), settings, np.random.default_rng(0)), dtype=np.float64)
    small = torch.from_numpy(np.asarray(picture(8, 8)).copy()).permute(2, 0, 1)
    expected = F.interpolate(small[None].double(), (16, 16), mode="bilinear", antialias=True)
    assert np.abs(result - expected[0].permute(1, 2, 0).numpy()).max() < 2


@given(
    size=st.tuples(st.integers(100, 900), st.integers(100, 900)),
    low=st.floats(0.3, 1),
    high=st.floats(1, 3),
    min_scale=st.floats(0.1, 1),
    seed=st.integers(0, 2**32),
)
def test_no_crop_of_a_picture_with_the_stated_side_is_enlarged(
    size: tuple[int, int], low: float, high: float, min_scale: float, seed: int
) -> None:
    side = crop_source_side(config(min_scale=min_scale, aspect_ratio=(low, high)))
    width, height = (max(side, length) for length in size)
    rng = np.random.default_rng(seed)
    left, top, right, bottom = crop_box((width, height), (min_scale, 1), (low, high), rng)
    assert min(right - left, bottom - top) >= 2 * 16 - 1


def test_transparent_pixels_become_white() -> None:
    rgba = np.zeros((2, 2, 4), dtype=np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    rgba[0, 1] = (0, 0, 0, 127)
    result = np.asarray(to_rgb(Image.fromarray(rgba)))
    assert result[0, 0].tolist() == [10, 20, 30]
    assert result[1, 1].tolist() == [255, 255, 255]
    assert result[0, 1].tolist() == [128, 128, 128]


def test_sixteen_bit_grey_keeps_its_gradient() -> None:
    grey = np.linspace(0, 65535, 256).astype(np.uint16)[None]
    result = np.asarray(to_rgb(Image.fromarray(grey)))
    assert result[0, :, 0].tolist() == [math.floor(value / 256) for value in grey[0]]


def test_a_picture_taken_sideways_is_turned_upright() -> None:
    image = picture(8, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise
    image.getexif()[0x0112] = exif[0x0112]
    assert to_rgb(image).tobytes() == image.transpose(Image.Transpose.ROTATE_270).tobytes()
