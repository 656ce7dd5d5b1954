import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.layers import Conv2dSame, ResBlock, same_padding


def brute_force_same(image: Tensor, weight: Tensor, stride: int) -> Tensor:
    """TensorFlow's SAME by its definition: ceil(size / stride) outputs, windows centred, a spare pixel after.

    One channel. Pixels outside the image count as zero.
    """
    size, kernel = image.shape[0], weight.shape[0]
    outputs = -(-size // stride)
    before = max((outputs - 1) * stride + kernel - size, 0) // 2
    result = torch.zeros(outputs, outputs)
    for row, column in np.ndindex(outputs, outputs):
        for i, j in np.ndindex(kernel, kernel):
            y, x = row * stride + i - before, column * stride + j - before
            if 0 <= y < size and 0 <= x < size:
                result[row, column] += image[y, x] * weight[i, j]
    return result


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 4])
@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_same_convolution_follows_the_definition(size: int, kernel: int, stride: int) -> None:
    generator = torch.Generator().manual_seed(size * 10 + kernel)
    image = torch.randn(size, size, generator=generator)
    convolution = Conv2dSame(1, 1, kernel, stride=stride, bias=False)
    nn.init.normal_(convolution.weight, generator=generator)
    with torch.no_grad():
        got = convolution(image[None, None])[0, 0]
        wanted = brute_force_same(image, convolution.weight[0, 0], stride)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@given(st.integers(1, 300), st.integers(1, 7), st.integers(1, 4))
def test_same_padding_gives_one_output_per_stride(size: int, kernel: int, stride: int) -> None:
    before, after = same_padding(size, kernel, stride)
    assert 0 <= before <= after <= before + 1
    if before + after:
        assert (size + before + after - kernel) // stride + 1 == -(-size // stride)


def test_halving_an_even_picture_pads_only_at_its_end() -> None:
    assert same_padding(64, 3, 2) == (0, 1)
    assert same_padding(64, 3, 1) == (1, 1)


def test_a_wide_picture_is_padded_on_each_axis_by_its_own_size() -> None:
    convolution = Conv2dSame(1, 1, 3, stride=2)
    assert convolution(torch.zeros(1, 1, 5, 8)).shape == (1, 1, 3, 4)


def test_the_shortcut_between_widths_reads_the_blocks_own_result() -> None:
    block = ResBlock(4, 8, 2).eval()
    assert block.nin_shortcut is not None
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # With a zero shortcut what is left is the block's own path.
        saved = block.nin_shortcut.weight.clone()
        block.nin_shortcut.weight.zero_()
        path = block(x)
        block.nin_shortcut.weight.copy_(saved)
        wanted = path + torch.einsum("oi,bihw->bohw", saved[:, :, 0, 0], path)
        torch.testing.assert_close(block(x), wanted, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(path, wanted)


def test_a_block_of_one_width_adds_its_input() -> None:
    block = ResBlock(4, 4, 2).eval()
    assert block.nin_shortcut is None
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        block.conv2.weight.zero_()
        assert torch.equal(block(x), x)
