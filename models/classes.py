"""Class names: from what a user types to a class id."""

from collections.abc import Sequence
from difflib import get_close_matches

from models.errors import InputError

SHOWN = 8  # class names that an error message lists when none is near


def nearest_names(name: str, names: Sequence[str], count: int = 3) -> list[str]:
    """Up to `count` class names that look like `name`, the nearest first."""
    plain = {other.casefold().replace("_", " "): other for other in names}
    wanted = name.casefold().replace("_", " ")
    contained = [key for key in plain if wanted and wanted in key]
    near = get_close_matches(wanted, plain, n=count, cutoff=0.5)
    return [plain[key] for key in dict.fromkeys([*near, *contained])][:count]


def find_class(names: Sequence[str], wanted: str) -> int:
    """Id of the class called `wanted`, by name (case and underscores do not matter) or by number.

    Raises InputError that names the nearest classes.
    """
    if wanted.isascii() and wanted.isdigit():
        number = int(wanted)
        if number < len(names):
            return number
        raise InputError(f"class {number} is unknown; allowed are 0 to {len(names) - 1}")
    folded = wanted.casefold().replace("_", " ").strip()
    for number, name in enumerate(names):
        if name.casefold().replace("_", " ") == folded:
            return number
    near = nearest_names(wanted, names)
    hint = (
        f"; did you mean {' or '.join(near)}?"
        if near
        else f"; the {len(names)} classes begin with {', '.join(names[:SHOWN])}"
    )
    raise InputError(f"class {wanted[:60]!r} is unknown{hint}")
