"""What documents print: their shell lines, tables, links and commands, to be held against the code."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import click
import typer

from maskbit_cli import COMMANDS, build_app

ROOT = Path(__file__).parents[1]
ADDRESS = "http://127.0.0.1:8000"


def read(name: str) -> str:
    """A document of the project."""
    return (ROOT / name).read_text()


def blocks(text: str, language: str = "sh") -> list[str]:
    """The contents of fenced blocks."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def section(text: str, title: str) -> str:
    """What stands below the heading `title`, up to the next heading of its level or above."""
    start = re.search(rf"^(#+) {re.escape(title)}$", text, flags=re.MULTILINE)
    assert start is not None, title
    rest = text[start.end() :]
    end = re.search(rf"^#{{1,{len(start[1])}}} ", rest, flags=re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows, without heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    bodies = [line for line, below in zip(lines, [*lines[1:], ""], strict=True) if "---" not in line + below]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in bodies]


def codes(text: str) -> list[str]:
    """What stands between backticks, outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def maskbit_lines(text: str) -> list[str]:
    """Every `maskbit …` of shell blocks and running text, without variables before and comments behind it."""
    shell = [line for block in blocks(text) for line in block.replace("\\\n", " ").splitlines()]
    lines = [re.sub(r"^(\w+=\S+ )+", "", line) for line in (*shell, *codes(text))]
    return [re.sub(r"\s+#.*|\s*>>.*", "", line) for line in lines if line.startswith("maskbit ")]


@cache
def _command(name: str) -> click.Command:
    # Typer may bring a click of its own, which looks the same.
    command: click.Command = typer.main.get_command(build_app([name])).commands[name]  # type: ignore[attr-defined]
    return command


def check_maskbit(line: str) -> None:
    """Fail unless there are the command, its sub-command and all the options of a `maskbit …` line."""
    _, name, *words = shlex.split(line)
    assert name in COMMANDS, line
    commands = [_command(name)]
    if children := getattr(commands[0], "commands", None):
        named = words.pop(0).split("|") if words and words[0] != "…" else list(children)
        assert set(named) <= set(children), line
        commands = [children[one] for one in named]
    known = {option for one in commands for option in [p for param in one.params for p in param.opts]}
    known |= {option for one in commands for param in one.params for option in param.secondary_opts}
    used = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert used <= known, line


_PYTEST = re.compile(r'(?:(MASKBIT_\w+)=\d+ )?pytest (tests/test_\w+\.py)(?: -k (?:"([\w ]+)"|(\w+)))?')


def pytest_lines(text: str) -> list[str]:
    """Every `pytest …` of the running text."""
    return [code for code in codes(text) if "pytest tests/" in code]


def check_pytest(line: str) -> None:
    """Fail unless there are the file, for each word of `-k` a test, and the variable of a `pytest …` line."""
    match = _PYTEST.fullmatch(line)
    assert match is not None, line
    variable, path, several, one = match.groups()
    names = _tests(path)
    for word in (several or one or "").split(" or "):
        assert any(word in name for name in names), line
    assert variable is None or variable in read(path), line


@cache
def _tests(path: str) -> frozenset[str]:
    tree = ast.walk(ast.parse(read(path)))
    functions = [node.name for node in tree if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return frozenset(name for name in functions if name.startswith("test_"))


def broken_links(name: str) -> list[str]:
    """Links of a document to files or headings of the project that are not there."""
    links = re.findall(r"\]\(((?!http)[^)]+)\)", read(name))
    return [link for link in links if not _leads_somewhere((ROOT / name).parent, name, link)]


def _leads_somewhere(folder: Path, name: str, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = folder / path if path else ROOT / name
    if not target.exists() or not anchor:
        return target.exists()
    titles = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE)
    return anchor in {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}
