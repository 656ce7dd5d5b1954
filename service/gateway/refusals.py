"""One sentence about what is wrong with a request: field, what was got (shortened), what is allowed."""

from collections.abc import Mapping, Sequence
from typing import Any

_SHOWN = 40
# Parts of pydantic's locations that say which branch of a union it took, not where the value is.
_BRANCHES = frozenset(
    {"body", "query", "path", "header", "one", "several", "rows", "picture"}
    | {"generate", "tokenize", "detokenize", "flip", "set", "clear", "mix"}
)


def refusal(errors: Sequence[Mapping[str, Any]]) -> str:
    """A sentence about the first of pydantic's `errors`."""
    error = errors[0]
    kind, text = error["type"], str(error["msg"])
    place = _place(error["loc"], names_field=kind in ("extra_forbidden", "missing"))
    if kind == "json_invalid":
        return f"the body is no JSON that is accepted here: {text.removeprefix('Invalid JSON: ')}"
    if kind == "extra_forbidden":
        return f"{place} is not a known field; unknown fields are not allowed"
    if kind == "missing":
        return f"{place} is missing, it is required"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return _unknown_tag(place, error)
    if kind in ("too_short", "too_long") and isinstance(error["input"], list):
        word, bound = ("least", "min_length") if kind == "too_short" else ("most", "max_length")
        got, allowed = len(error["input"]), error["ctx"][bound]
        return f"{place} is a list of {got}; it should have at {word} {allowed} items"
    # "Input should be …" or "String should have …".
    wanted = text[text.find("should ") :]
    return f"{place or 'the body'} is {shorten(error['input'])}; it {wanted}"


def shorten(value: object) -> str:
    """A value of JSON in a few words, safe to show."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int):
        digits = value.bit_length() * 3 // 10
        return str(value) if digits < _SHOWN else f"a number of about {digits} digits"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return repr(value) if len(value) <= _SHOWN else f"{value[:_SHOWN]!r}… ({len(value)} characters)"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    return "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def _unknown_tag(place: str, error: Mapping[str, Any]) -> str:
    """About the field that tells which of several forms an object has."""
    context = error["ctx"]
    name = context["discriminator"].strip("'")
    field = f"{place}.{name}" if place else name
    if error["type"] == "union_tag_not_found":
        return f"{field} is missing, it is required"
    allowed = context["expected_tags"].replace("'", "").rpartition(", ")
    return f"{field} is {shorten(error['input'].get(name))}; allowed are {allowed[0]} and {allowed[2]}"


def _place(loc: Sequence[int | str], *, names_field: bool) -> str:
    """Where in the body; the last part of `loc` is a field for sure if `names_field`."""
    place = ""
    for depth, part in enumerate(loc):
        if isinstance(part, int):
            place += f"[{part}]"
        elif part not in _BRANCHES or (names_field and depth == len(loc) - 1):
            name = part if part.isidentifier() and len(part) <= _SHOWN else shorten(part)
            place += f".{name}" if place else name
    return place
