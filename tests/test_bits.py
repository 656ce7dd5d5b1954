import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models import bits
from models.errors import InputError


@st.composite
def grids(draw: st.DrawFn) -> tuple[NDArray[np.int64], int]:
    """Token indices (h, w) and their bits."""
    width = draw(st.integers(1, 24))
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    flat = draw(
        st.lists(st.integers(0, 2**width - 1), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
    )
    return np.array(flat, dtype=np.int64).reshape(shape), width


@given(grids())
def test_every_form_leads_back_to_the_indices(case: tuple[NDArray[np.int64], int]) -> None:
    indices, width = case
    assert np.array_equal(bits.from_bits(bits.to_bits(indices, width)), indices)
    assert np.array_equal(bits.from_strings(bits.to_strings(indices, width), width), indices)
    assert np.array_equal(bits.unpack(bits.pack(indices, width), indices.shape, width), indices)
    for splits in (n for n in range(1, width + 1) if width % n == 0):
        assert np.array_equal(bits.join_groups(bits.split_groups(indices, width, splits), width), indices)


@given(grids())
def test_strings_and_bytes_are_pythons_own_binary_digits(case: tuple[NDArray[np.int64], int]) -> None:
    """Bit 0 first: a token's string is the reversed binary number, a pack one long little-endian number."""
    indices, width = case
    digits = [f"{int(index):0{width}b}"[::-1] for index in indices.ravel()]
    assert [token for row in bits.to_strings(indices, width) for token in row] == digits
    assert int.from_bytes(bits.pack(indices, width), "little") == int("".join(digits)[::-1], 2)


@given(st.lists(st.booleans(), min_size=12, max_size=12))
def test_a_mask_takes_one_bit_for_each_token(values: list[bool]) -> None:
    mask = np.array(values).reshape(3, 4)
    packed = bits.pack_mask(mask)
    assert int.from_bytes(packed, "little") == sum(value << k for k, value in enumerate(values))
    assert len(packed) == 2
    assert np.array_equal(bits.unpack_mask(packed, (3, 4)), mask)


def test_a_group_is_a_run_of_bits_from_the_lowest() -> None:
    groups = bits.split_groups(np.array([0b110_010_001]), 9, 3)
    assert groups.tolist() == [[0b001, 0b010, 0b110]]
    assert bits.to_strings(np.array([[0b001]]), 3) == [["100"]]


@pytest.mark.parametrize("index", [-1, 64, 2**40])
def test_an_index_out_of_range_is_refused(index: int) -> None:
    indices = np.array([[0, index]])
    with pytest.raises(InputError, match=r"allowed are 0 to 63"):
        bits.to_bits(indices, 6)
    with pytest.raises(InputError, match=r"allowed are 0 to 63"):
        bits.split_groups(indices, 6, 2)
    with pytest.raises(InputError, match=r"allowed are 0 to 63"):
        bits.pack(indices, 6)


def test_a_mask_id_is_no_group() -> None:
    with pytest.raises(InputError, match="allowed are 0 to 7"):
        bits.join_groups(np.array([[3, 8]]), 6)


@pytest.mark.parametrize(
    "rows",
    [
        [["0101"]],
        [["01012"]],
        [["01 01"]],
        [["٠1010"]],
        [["01010", "0101"]],
        [["01010"], ["01010", "01010"]],
        [],
        [[]],
        [["x" * 10_000]],
    ],
)
def test_malformed_strings_are_refused_with_a_short_message(rows: list[list[str]]) -> None:
    with pytest.raises(InputError) as caught:
        bits.from_strings(rows, 5)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("size", [0, 2, 4])
def test_packed_bytes_of_the_wrong_length_are_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"hold {size} bytes.*take 3"):
        bits.unpack(bytes(size), (2, 2), 6)
