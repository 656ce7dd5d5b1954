"""The pods of deploy/kubernetes, which people start by hand beside the chart."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from models.version import own_version
from tests.chart_fixtures import Manifest, containers, pod_specs
from tests.documents import ROOT, blocks, check_maskbit, read, section
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


def kubectl_lines() -> list[str]:
    """How a bundle is copied into the claim, as the pod's file says."""
    lines = (ROOT / "deploy" / "kubernetes" / "load-bundle.yaml").read_text().splitlines()
    return [line.removeprefix("#   ") for line in lines if line.startswith("#   kubectl ")]


def run_in(claim: Path, source: Path, line: str) -> None:
    """What `kubectl exec` and `kubectl cp` would do in the pod, whose claim is the folder `claim`."""
    words = shlex.split(line)
    if "exec" in words:
        command = [word.replace("/bundles", str(claim)) for word in words[words.index("--") + 1 :]]
    elif "cp" in words:
        command = ["cp", "-r", str(source), words[-1].replace("load-bundle:/bundles", str(claim))]
    else:
        return
    subprocess.run(command, check=True)


def test_a_bundle_is_put_in_the_place_of_another_as_a_whole(tmp_path: Path) -> None:
    claim = tmp_path / "claim"
    claim.mkdir()
    for revision in ("first", "second", "third"):
        source = tmp_path / revision / "imagenet"
        source.mkdir(parents=True)
        (source / revision).touch()
        for line in kubectl_lines():
            run_in(claim, source, line)
        assert [path.name for path in (claim / "imagenet").iterdir()] == [revision]
        assert {path.name for path in claim.iterdir()} <= {"imagenet", "imagenet.old"}


def test_the_walk_through_copies_as_the_pod_says_and_serves_what_was_copied() -> None:
    [walk] = blocks(section(read("docs/deploy.md"), "4. Your model, on GPUs"))[:1]
    assert "\n".join(kubectl_lines()) in walk
    example = yaml.safe_load(read("deploy/helm/maskbit/examples/gpu.yaml"))
    [model] = example["models"]
    folder = f"/bundles/{model['bundle']['ref']}"
    assert f"mv {model['bundle']['ref']}.new {model['bundle']['ref']}'" in walk
    assert f"configmap {model['bundle']['manifestConfigMap']} " in walk
    for path in PATHS:
        claims = [volume.get("persistentVolumeClaim") for volume in pod_of(path)["volumes"]]
        assert {"claimName": model["bundle"]["claim"]} in claims
        for one in containers(pod_of(path)):
            assert {"name": "bundles", "mountPath": "/bundles"} in one["volumeMounts"]
            assert [arg for arg in one.get("args", [folder]) if arg.startswith("/")] == [folder]
