"""Class names: where they are read from, and from what a user types to a class id."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from models.errors import ConfigError, InputError

SHOWN = 8  # class names that an error message lists when none is near
IMAGENET_CLASSES = 1000


def imagenet_names() -> tuple[str, ...]:
    """The classes of ImageNet-1k by label, as torchvision names them but for the Cardigan Welsh corgi."""
    return read_names(Path(__file__).parent / "imagenet_classes.json")


def read_names(path: Path) -> tuple[str, ...]:
    """Class names by label from a JSON file: a list, or an object from label numbers to names.

    Raises ConfigError unless every label from 0 on has a name of its own.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            content = [content[str(label)] for label in range(len(content))]
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigError(f"{path} is not JSON: {exc}") from exc
    except KeyError as exc:
        raise ConfigError(f"{path} names no class {exc}; labels count from 0") from exc
    if not isinstance(content, list) or not all(isinstance(name, str) and name for name in content):
        raise ConfigError(f"{path} must hold a list of names, or an object from label numbers to names")
    names = tuple(content)
    if same := [name for name, count in Counter(map(_folded, names)).items() if count > 1]:
        raise ConfigError(f"{path} gives several classes one name: {', '.join(same[:SHOWN])}")
    return names


def _folded(name: str) -> str:
    return name.casefold().replace("_", " ").strip()


def nearest_names(name: str, names: Sequence[str], count: int = 3) -> list[str]:
    """Up to `count` class names that look like `name`, the nearest first."""
    plain = {_folded(other): other for other in names}
    wanted = _folded(name)
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
    folded = _folded(wanted)
    for number, name in enumerate(names):
        if _folded(name) == folded:
            return number
    near = nearest_names(wanted, names)
    hint = (
        f"; did you mean {' or '.join(near)}?"
        if near
        else f"; the {len(names)} classes begin with {', '.join(names[:SHOWN])}"
    )
    raise InputError(f"class {wanted[:60]!r} is unknown{hint}")


def find_classes(names: Sequence[str], wanted: str) -> list[int]:
    """Ids of the classes that `wanted` names: one class as in `find_class`, or a list such as `0-15,20`.

    Raises InputError.
    """
    parts = [part.strip() for part in wanted.split(",")]
    # A class name may hold commas and digits of its own, hence only what is all numbers is a list.
    if not all(re.fullmatch(r"\d{1,9}(-\d{1,9})?", part, re.ASCII) for part in parts):
        return [find_class(names, wanted)]
    found: list[int] = []
    for part in parts:
        first, _, last = part.partition("-")
        ends = find_class(names, first), find_class(names, last or first)
        if ends[0] > ends[1]:
            raise InputError(f"classes {part!r} run backwards; write {ends[1]}-{ends[0]}")
        found += range(ends[0], ends[1] + 1)
    return found
