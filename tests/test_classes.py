"""Class names from files and from what people type."""

import json
from pathlib import Path

import pytest

from models.classes import find_class, imagenet_names, nearest_names, read_names
from models.errors import ConfigError, InputError

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


def test_imagenet_has_a_thousand_names_that_find_their_labels() -> None:
    names = imagenet_names()
    assert len(names) == 1000
    known = {"tench": 0, "golden retriever": 207, "Cardigan Welsh corgi": 264, "cardigan": 474}
    known |= {"crane bird": 134, "crane": 517, "toilet tissue": 999}
    assert {name: find_class(names, name) for name in known} == known
    assert [find_class(names, name) for name in names] == list(range(1000))


def test_names_are_read_from_a_list_and_from_an_object_of_labels(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps(NAMES))
    shuffled = {str(label): NAMES[label] for label in (2, 0, 3, 1)}
    (tmp_path / "object.json").write_text(json.dumps(shuffled))
    assert read_names(tmp_path / "list.json") == read_names(tmp_path / "object.json") == NAMES


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ('{"0": "a", "2": "b"}', "names no class '1'; labels count from 0"),
        ('["a", 2]', "a list of names"),
        ('["a", ""]', "a list of names"),
        ('"a"', "a list of names"),
        ('["red_apple", "pear", "Red Apple"]', "one name: red apple"),
    ],
)
def test_a_file_that_names_no_classes_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_names(tmp_path / "classes.json")
    assert words in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_names(tmp_path)
