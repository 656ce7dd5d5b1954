"""A section of a recipe: a mapping read into its dataclass, every value checked against the field's type."""

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from models.config import from_mapping, require

T = TypeVar("T")

NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}


def read_section(cls: type[T], section: str, values: Mapping[str, Any]) -> T:
    """Build `cls`; ConfigError for unknown or missing keys, wrong types and values it refuses."""
    hints = get_type_hints(cls)
    for key, value in values.items():
        require(
            key not in hints or _fits(value, hints[key]),
            f"{section}.{key} is {value!r}; it must be {_describe(hints.get(key))}",
        )
    return from_mapping(cls, values)


def _fits(value: object, hint: Any) -> bool:
    parts = get_args(hint)
    if get_origin(hint) is UnionType:
        return any(_fits(value, part) for part in parts)
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            return False
        wanted = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(value) == len(wanted) and all(map(_fits, value, wanted))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)


def _describe(hint: Any) -> str:
    parts = get_args(hint)
    if get_origin(hint) is UnionType:
        return " or ".join(_describe(part) for part in parts)
    if get_origin(hint) is tuple:
        count = "" if parts[-1] is Ellipsis else f"{len(parts)} times "
        return f"a list of {count}{_describe(parts[0])}"
    return NAMES.get(hint, str(hint))
