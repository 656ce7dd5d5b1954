"""Writes the table of values in maskbit/README.md: `python deploy/helm/values_table.py`.

What it says comes from values.yaml: a comment above a key is its meaning, `# -- Title --` begins a table.
A mapping whose keys have no comments is one value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "maskbit"
BEGIN, END = "<!-- values: made by deploy/helm/values_table.py -->\n", "<!-- end of values -->\n"
_TITLE = re.compile(r"# -- (.+?) -+")

Row = tuple[str, str, str]  # path, default, meaning


def rows(text: str) -> Iterator[Row | str]:
    """Rows of the tables, and titles before them. Raises ValueError for a value without a comment."""
    lines = text.splitlines()
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    values = yaml.safe_load(text)
    title = 0
    for key, node in root.value:
        line = key.start_mark.line
        yield from (found[1] for one in lines[title:line] if (found := _TITLE.fullmatch(one)))
        title = line
        yield from _rows(key, node, values[key.value], (), lines)


def _rows(
    key: yaml.Node, node: yaml.Node, value: Any, above: tuple[str, ...], lines: list[str]
) -> Iterator[Row]:
    path = (*above, key.value)
    meaning = _comment(lines, key)
    if not _has_comments(node, lines):
        if not meaning:
            raise ValueError(f"values.yaml: {'.'.join(path)} has no comment above it")
        yield ".".join(path), _code(value), meaning
        return
    if meaning:
        yield ".".join(path), "", meaning
    for child, below in node.value:
        yield from _rows(child, below, value[child.value], path, lines)


def _has_comments(node: yaml.Node, lines: list[str]) -> bool:
    """Whether a key of the mapping `node`, or one below, is explained."""
    return isinstance(node, yaml.MappingNode) and any(
        _comment(lines, key) or _has_comments(below, lines) for key, below in node.value
    )


def _comment(lines: list[str], key: yaml.Node) -> str:
    """The comment right above a key, as one line."""
    found: list[str] = []
    line, mark = key.start_mark.line - 1, " " * key.start_mark.column + "# "
    while line >= 0 and lines[line].startswith(mark) and not _TITLE.fullmatch(lines[line]):
        found.insert(0, lines[line].removeprefix(mark))
        line -= 1
    return " ".join(found)


def _code(value: Any) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return f"`{text}`"


def table(text: str) -> str:
    """The tables of a values.yaml, Markdown."""
    parts: list[str] = []
    for row in rows(text):
        if isinstance(row, str):
            parts.append(f"\n### {row}\n\n| value | default | meaning |\n| --- | --- | --- |\n")
        else:
            path, default, meaning = (cell.replace("|", "\\|") for cell in row)
            parts.append(f"| `{path}` | {default} | {meaning} |\n")
    return "".join(parts) + "\n"


def filled(readme: str, text: str) -> str:
    """The README with the tables of the values `text` between its marks."""
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + table(text) + END + tail


if __name__ == "__main__":
    path = CHART / "README.md"
    path.write_text(filled(path.read_text(), (CHART / "values.yaml").read_text()))
