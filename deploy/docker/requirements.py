"""Prints what extras of pyproject.toml need, one requirement a line: `requirements.py worker onnx`.

An image installs them before the code, so that a change of the code leaves their layer as it is.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def requirements(project: Mapping[str, Any], extras: Sequence[str]) -> Iterator[str]:
    """Those of the project itself and of `extras`; an extra may name others of its project."""
    own = f"{project['name']}["
    yield from project["dependencies"]
    for extra in extras:
        for one in project["optional-dependencies"][extra]:
            if one.startswith(own):
                yield from requirements(project, one.removeprefix(own).removesuffix("]").split(","))
            else:
                yield one


def main() -> None:
    """Read pyproject.toml of the working directory."""
    with open("pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    print("\n".join(dict.fromkeys(requirements(project, sys.argv[1:]))))


if __name__ == "__main__":
    main()
