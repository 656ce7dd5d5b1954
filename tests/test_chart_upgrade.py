"""The Helm chart's upgrades: what Kubernetes does not let change stays as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart_fixtures import CHART, EXAMPLES, Manifest, cases, merged, render, rendered

CASES = sorted(cases())
# What was released, by case: change it with the major version alone, and say in the changelog what to do.
RELEASED = Path(__file__).parent / "golden" / "chart_immutable.json"
CHANGED: dict[str, Any] = {
    "commonLabels": {"team": "other", "cost-center": "42"},
    "images": {"tag": "9.9.9", "registry": "mirror.example.com"},
    "drainSeconds": 90,
    "log": {"level": "debug"},
    "gateway": {"podLabels": {"tier": "front"}, "replicas": 5},
    "worker": {"podLabels": {"tier": "back"}, "settings": {"slots": 4}, "startupSeconds": 900},
    "redis": {
        "internal": {"image": {"tag": "8.0.0"}, "maxmemory": "900mb", "nodeSelector": {"disk": "fast"}}
    },
}


def immutable(one: Manifest) -> Any:
    """The fields of an object that the API server refuses to change."""
    spec = one.get("spec", {})
    match one["kind"]:
        case "Deployment":
            return {"selector": spec["selector"]}
        case "StatefulSet":
            free = {"replicas", "template", "updateStrategy", "minReadySeconds", "ordinals"}
            free |= {"persistentVolumeClaimRetentionPolicy", "revisionHistoryLimit"}
            return {key: value for key, value in spec.items() if key not in free}
        case "Service":
            # An address that is given to a Service stays; so does having none.
            return {"clusterIP": spec.get("clusterIP"), "type": spec["type"]}
        case "PersistentVolumeClaim":
            return {key: value for key, value in spec.items() if key != "resources"}
        case "Job":
            return {"template": spec["template"], "selector": spec.get("selector")}
        case "PriorityClass":
            return {"value": one["value"], "preemptionPolicy": one.get("preemptionPolicy")}
        case "ConfigMap":
            return {"immutable": one.get("immutable", False)}
        case _:
            return {}


def all_immutable(manifests: list[Manifest]) -> dict[str, Any]:
    """Immutable fields by kind and name, without Jobs, whose names change with their content."""
    return {
        f"{one['kind']}/{one['metadata']['name']}": immutable(one)
        for one in manifests
        if one["kind"] != "Job"
    }


@pytest.fixture(scope="module")
def next_chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart as its next version."""
    folder = tmp_path_factory.mktemp("next") / "maskbit"
    shutil.copytree(CHART, folder)
    meta = yaml.safe_load((folder / "Chart.yaml").read_text())
    (folder / "Chart.yaml").write_text(yaml.safe_dump({**meta, "version": "9.9.9", "appVersion": "9.9.9"}))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_the_next_version_changes_no_immutable_field(case: str, next_chart: Path) -> None:
    new = render(merged(cases()[case], CHANGED), of=next_chart)
    assert all_immutable(new) == all_immutable(rendered(case))


@pytest.mark.parametrize("example", [path.stem for path in EXAMPLES])
def test_a_first_release_becomes_each_example_without_a_change_of_an_immutable_field(example: str) -> None:
    old, new = all_immutable(render()), all_immutable(rendered(example))
    both = old.keys() & new.keys()
    assert "Deployment/demo-maskbit-gateway" in both
    assert {key: new[key] for key in both} == {key: old[key] for key in both}


@pytest.mark.parametrize("case", CASES)
def test_jobs_of_one_name_are_the_same_in_every_version(case: str, next_chart: Path) -> None:
    old, moved, same = (
        {one["metadata"]["name"]: immutable(one) for one in manifests if one["kind"] == "Job"}
        for manifests in (
            rendered(case),
            render(merged(cases()[case], CHANGED), of=next_chart),
            # The version of the chart alone.
            render(merged(cases()[case], {"images": {"tag": "0.1.0"}}), of=next_chart),
        )
    )
    assert not set(old) & set(moved)
    assert same == old


@pytest.mark.parametrize("case", ["default", "gpu", "hub", "triton"])
def test_nothing_differs_from_what_was_released(case: str) -> None:
    released = json.loads(RELEASED.read_text())
    assert all_immutable(render(cases().get(case))) == released[case]


def test_redis_is_not_started_anew_by_a_version_of_ours(next_chart: Path) -> None:
    old, new = (
        [one["spec"]["template"] for one in render(of=path) if one["kind"] == "StatefulSet"]
        for path in (CHART, next_chart)
    )
    assert old == new


def test_redis_is_started_anew_by_other_settings() -> None:
    old, new = (
        [
            one["spec"]["template"]["metadata"]["annotations"]
            for one in render(values)
            if one["kind"] == "StatefulSet"
        ]
        for values in ({}, {"redis": {"internal": {"maxmemory": "900mb"}}})
    )
    assert old != new
