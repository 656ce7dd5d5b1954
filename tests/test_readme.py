"""What README and guides print must work as printed: their lines for a shell, commands, links."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.documents import ADDRESS, ROOT, blocks, broken_links, check_maskbit, codes, maskbit_lines, read
from tests.service_fixtures import Running

README = read("README.md")
DOCUMENTS = [
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "deploy/helm/maskbit/README.md",
    *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
# A refused request must fail the script.
STRICT = 'set -euo pipefail\ncurl() { command curl --fail-with-body "$@"; }\n'


def run_as_printed(name: str, service: Running, folder: Path) -> str:
    """Standard output of all lines of a document that speak HTTP, in one shell."""
    spoken = [block for block in blocks(read(name)) if "curl " in block]
    assert spoken
    script = STRICT + "\n".join(spoken).replace(ADDRESS, service.url)
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr)
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            assert image.size == (64, 64), path
    return done.stdout


def test_the_http_lines_of_the_readme_work_as_printed(service: Running, tmp_path: Path) -> None:
    said = run_as_printed("README.md", service, tmp_path)
    assert len(json.JSONDecoder().raw_decode(said)[0]["images"]) == 3
    assert said.count("event: progress") == 11
    assert "event: done" in said
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(files) == {"corn.png", "tokens.json", "again.png", "flipped.png"}
    assert files["again.png"] != files["flipped.png"]


def test_the_lines_of_the_guide_to_the_api_work_as_printed(service: Running, tmp_path: Path) -> None:
    said = run_as_printed("docs/api.md", service, tmp_path)
    assert said.count("event: done") == 2
    assert '"state":"done"' in said
    assert re.search(r"x-psnr-db: \d+\.\d+", said, re.IGNORECASE)
    names = ("corn.png", "again.png", "edited.png", "repainted.png")
    assert len({(tmp_path / name).read_bytes() for name in names}) == len(names)
    headers = (tmp_path / "headers.txt").read_text().lower()
    assert all(f"\n{name}: " in headers for name in ("x-seed", "x-class-name", "x-bundle", "x-job-id"))


def test_the_lines_for_openais_client_work_as_printed(service: Running, tmp_path: Path) -> None:
    [lines] = blocks(README, "python")
    subprocess.run(
        [sys.executable, "-c", lines.replace(ADDRESS, service.url)], cwd=tmp_path, timeout=60, check=True
    )
    with Image.open(tmp_path / "strawberry.png") as image:
        assert image.size == (64, 64)


@pytest.mark.parametrize("line", sorted({line for name in DOCUMENTS for line in maskbit_lines(read(name))}))
def test_every_command_of_the_documents_exists_with_its_options(line: str) -> None:
    check_maskbit(line)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_of_the_documents_leads_somewhere(name: str) -> None:
    assert broken_links(name) == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_source_file_that_a_document_names_exists(name: str) -> None:
    folders = ("models", "training", "service", "tests")
    for code in codes(read(name)):
        if re.fullmatch(r"[\w/*]+\.(py|lua)", code):
            found = any(next((ROOT / folder).rglob(Path(code).name), None) for folder in folders)
            assert next(ROOT.glob(code), None) or ("/" not in code and found), code


def test_version_and_changelog_agree() -> None:
    version = re.search(r'^version = "(.+)"', read("pyproject.toml"), flags=re.MULTILINE)
    newest = re.search(r"^## \[(.+?)\]", read("CHANGELOG.md"), flags=re.MULTILINE)
    assert version is not None
    assert newest is not None
    assert version.group(1) == newest.group(1)
