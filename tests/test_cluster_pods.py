"""The pods of deploy/kubernetes, which people start by hand beside the chart."""

from __future__ import annotations

import shlex
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from models.version import own_version
from tests.chart_fixtures import Manifest, containers, pod_specs
from tests.documents import ROOT, check_maskbit
from tests.test_chart_security import restricted

PATHS = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))


def manifest(path: Path) -> Manifest:
    one: Manifest = yaml.safe_load(path.read_text())
    return one


def pod_of(path: Path) -> Manifest:
    [(_, pod)] = pod_specs([manifest(path)])
    return pod


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
@pytest.mark.parametrize("version", ["1.30", "1.34", "1.37"])
def test_a_pod_is_strictly_valid(path: Path, version: str) -> None:
    kubernetes_validate.validate(manifest(path), version, strict=True)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_pod_is_restricted_and_of_this_version(path: Path) -> None:
    pod = pod_of(path)
    assert list(restricted(pod)) == []
    assert pod["automountServiceAccountToken"] is False
    for one in containers(pod):
        name, _, tag = one["image"].rpartition("/")[2].partition(":")
        assert name in ("maskbit-worker-cpu", "maskbit-worker-gpu")
        assert tag == own_version()
        assert one["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_commands_are_those_of_maskbit(path: Path) -> None:
    for one in containers(pod_of(path)):
        if "args" in one:
            check_maskbit(shlex.join(["maskbit", *one["args"]]))


def test_the_image_that_compiles_has_what_compiling_needs() -> None:
    pod = pod_of(ROOT / "deploy" / "kubernetes" / "compile-bundle.yaml")
    [image] = {one["image"] for one in containers(pod)}
    dockerfile = image.rpartition("/")[2].partition(":")[0].removeprefix("maskbit-")
    text = (ROOT / "deploy" / "docker" / f"{dockerfile}.Dockerfile").read_text()
    assert "requirements.py export tensorrt " in text
