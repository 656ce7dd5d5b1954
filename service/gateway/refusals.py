"""One sentence about what is wrong with a request: field, what was got (shortened), what is allowed."""

from collections.abc import Mapping, Sequence
from typing import Any

_SHOWN = 40
# Parts of pydantic's locations that say which branch of a union it took, not where the value is.
_BRANCHES = frozenset(
    {"body", "query", "path", "header", "one", "several", "generate", "tokenize", "detokenize"}
)


def refusal(errors: Sequence[Mapping[str, Any]]) -> str:
    """A sentence about the first of pydantic's `errors`."""
    error = errors[0]
    place, text = _place(error["loc"]), str(error["msg"])
    kind = error["type"]
    if kind == "json_invalid":
        return f"the body is no JSON that is accepted here: {text.removeprefix('Invalid JSON: ')}"
    if kind == "extra_forbidden":
        return f"{place} is not a known field; unknown fields are not allowed"
    if kind == "missing":
        return f"{place} is missing, it is required"
    if kind == "union_tag_not_found":
        return "kind is missing; allowed are generate, tokenize and detokenize"
    if kind == "union_tag_invalid":
        got = error["input"].get("kind") if isinstance(error["input"], Mapping) else None
        return f"kind is {shorten(got)}; allowed are generate, tokenize and detokenize"
    wanted = text.removeprefix("Input ").removeprefix("should be ").removeprefix("Value ")
    return f"{place or 'the body'} is {shorten(error['input'])}; it should be {wanted}"


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


def _place(loc: Sequence[int | str]) -> str:
    place = ""
    for depth, part in enumerate(loc):
        if isinstance(part, int):
            place += f"[{part}]"
        elif depth > 1 or part not in _BRANCHES or (depth == 0 and len(loc) == 1):
            name = part if part.isidentifier() and len(part) <= _SHOWN else shorten(part)
            place += f".{name}" if place else name
    return place
