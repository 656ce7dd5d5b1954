"""Configurations built from parsed JSON or YAML, and the checks that they make of themselves."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from models.errors import ConfigError

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build the dataclass `cls` from parsed JSON or YAML, where a list stands for a tuple.

    ConfigError names a key that is unknown, missing or of another type than its field.
    """
    known = {field.name: field.type for field in fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise ConfigError(f"{cls.__name__}: unknown {', '.join(unknown)}; allowed are {', '.join(known)}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    hints = _type_hints(cls)  # type: ignore[arg-type]
    for key, value in given.items():
        if not _fits(value, hints[key]):
            raise ConfigError(f"{cls.__name__}: {key} is {str(value)[:80]!r}; its type is {known[key]}")
    try:
        return cls(**given)
    except TypeError as exc:
        raise ConfigError(f"{cls.__name__}: {exc}") from exc


@cache
def _type_hints(cls: Hashable) -> dict[str, Any]:
    """Resolving annotations takes longer than all the checks, and a worker parses a config for each job."""
    return get_type_hints(cls)


def _fits(value: object, hint: Any) -> bool:
    """Whether `value` has the annotated type: an int is a float too, booleans and NaN are no numbers."""
    if hint is Any:
        return True
    if isinstance(hint, type):
        return _is_a(value, hint)
    origin, parts = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        wanted = parts[:1] * len(value) if isinstance(value, tuple) and parts[-1] is Ellipsis else parts
        return isinstance(value, tuple) and len(value) == len(wanted) and all(map(_fits, value, wanted))
    assert origin is Mapping
    return isinstance(value, Mapping) and all(_fits(item, parts[1]) for item in value.values())


def _is_a(value: object, hint: type) -> bool:
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    if hint is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return isinstance(value, hint)


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_positive(config: object, *names: str) -> None:
    """Raise ConfigError unless each named field of `config` is an integer of at least 1."""
    for name in names:
        value = getattr(config, name)
        require(
            isinstance(value, int) and not isinstance(value, bool) and value >= 1,
            f"{name} is {value!r}; a whole number of at least 1 is needed",
        )


def require_one_of(config: object, name: str, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError unless the field `name` of `config` has one of the `allowed` values."""
    value = getattr(config, name)
    require(value in allowed, f"{name} is {value!r}; allowed are {', '.join(allowed)}")
