"""Version, chart, images and changelog agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
VERSION = str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])
DOCKERFILES = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))
OURS = ("maskbit-gateway", "maskbit-worker-cpu", "maskbit-worker-gpu")


def test_the_chart_is_of_this_version_and_deploys_it() -> None:
    chart = yaml.safe_load((ROOT / "deploy" / "helm" / "maskbit" / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_is_labelled_with_this_version(path: Path) -> None:
    assert re.findall(r"^ARG VERSION=(.*)$", path.read_text(), re.MULTILINE) == [VERSION]


def test_compose_names_images_of_this_version() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    ours = {service["image"] for service in services.values() if service["image"].startswith("maskbit-")}
    assert ours == {f"{name}:{VERSION}" for name in OURS}
    assert {path.stem for path in DOCKERFILES} == {name.removeprefix("maskbit-") for name in OURS}


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## \[(.*?)\] - (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    version, date = headings[0]
    assert version == VERSION
    assert re.fullmatch(r"unreleased|\d{4}-\d{2}-\d{2}", date)


def test_the_guide_to_a_cluster_builds_images_of_this_version() -> None:
    tags = re.findall(r"maskbit-\$part:(\S+)", (ROOT / "docs" / "deploy.md").read_text())
    assert set(tags) == {VERSION}
