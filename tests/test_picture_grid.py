import numpy as np
import pytest
import torch

from training.picture_grid import picture_grid


@pytest.mark.parametrize(("count", "columns", "size"), [(6, 3, (12, 10)), (4, 3, (12, 10)), (1, 2, (8, 5))])
def test_pictures_stand_in_rows_and_missing_ones_are_white(
    count: int, columns: int, size: tuple[int, int]
) -> None:
    images = (torch.arange(count) / 10).view(count, 1, 1, 1).expand(count, 3, 5, 4)
    grid = picture_grid(images, columns)
    assert (grid.mode, grid.size) == ("RGB", size)
    pixels = np.array(grid)
    for number in range(-(-count // columns) * columns):
        row, column = divmod(number, columns)
        cell = pixels[row * 5 : row * 5 + 5, column * 4 : column * 4 + 4]
        assert np.array_equal(cell, np.full((5, 4, 3), round(255 * number / 10) if number < count else 255))


def test_colours_keep_their_channels_and_values_beyond_the_range_are_clamped() -> None:
    images = torch.tensor([-1.0, 0.5, 2.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert picture_grid(images, 1).getpixel((1, 1)) == (0, 128, 255)


def test_half_precision_pictures_are_accepted() -> None:
    assert picture_grid(torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16), 1).getpixel((0, 0)) == (0, 0, 0)
