"""What the README prints must work as printed: its curl lines, its commands' names, its files."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from maskbit_cli import COMMANDS
from tests.service_fixtures import Running

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


def blocks() -> list[str]:
    """Shell blocks of the README."""
    return re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)


def http_lines() -> list[str]:
    """The commands of the block on HTTP, continued lines joined, comments left out."""
    block = next(block for block in blocks() if f"{ADDRESS}/generate" in block)
    joined = block.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


def test_the_http_lines_work_as_printed(service: Running, tmp_path: Path) -> None:
    for line in http_lines():
        command = line.replace(ADDRESS, service.url).replace("curl ", "curl --fail-with-body ")
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, (line, done.stdout[:500], done.stderr)
        if '"n": 3' in line:
            assert len(json.loads(done.stdout)["images"]) == 3
        if '"stream": true' in line:
            assert done.stdout.count("event: progress") == 11
            assert "event: done" in done.stdout
    for name in ("corn.png", "again.png"):
        with Image.open(tmp_path / name) as image:
            assert image.size == (64, 64)
    tokens = json.loads((tmp_path / "tokens.json").read_text())
    assert len(tokens["tokens"]) == tokens["grid"][0] == 16


def test_every_command_of_the_readme_exists() -> None:
    called = {word for block in blocks() for word in re.findall(r"^maskbit (\w+)", block, flags=re.MULTILINE)}
    assert called
    assert called <= set(COMMANDS)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)\)", README))))
def test_every_file_that_the_readme_links_to_exists(link: str) -> None:
    assert (ROOT / link).exists()


def test_version_and_changelog_agree() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert version is not None
    assert newest is not None
    assert version.group(1) == newest.group(1)
