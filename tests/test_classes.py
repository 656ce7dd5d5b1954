"""Class names from what people type."""

import pytest

from models.classes import find_class, nearest_names
from models.errors import InputError

NAMES = ("bell_pepper", "red_apple", "green_apple", "strawberry")


@pytest.mark.parametrize("typed", ["red_apple", "Red Apple", " red apple ", "1"])
def test_a_class_is_found_by_name_in_any_case_and_by_number(typed: str) -> None:
    assert find_class(NAMES, typed) == 1


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("strawbery", "did you mean strawberry"),
        ("apple", "red_apple or green_apple"),
        ("4", "allowed are 0 to 3"),
        ("zebra", "the 4 classes begin with bell_pepper, red_apple"),
        ("", "the 4 classes begin with"),
    ],
)
def test_an_unknown_class_is_answered_with_the_nearest_names(typed: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        find_class(NAMES, typed)
    assert words in str(caught.value)


def test_the_nearest_name_comes_first() -> None:
    assert nearest_names("gren apple", NAMES)[0] == "green_apple"
