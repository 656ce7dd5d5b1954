"""The Helm chart's workers scale by what Prometheus knows; its rules and dashboard are the project's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from service.telemetry import GatewayMetrics, WorkerMetrics
from tests.chart_fixtures import CHART, Manifest, by_kind, render, rendered
from tests.prometheus_server import promtool

# -- KEDA ----------------------------------------------------------------------------------------------------


def triggers(**autoscaling: Any) -> dict[str, Manifest]:
    """The triggers of the bundled model's workers."""
    keda = {"serverAddress": "http://prometheus:9090", **autoscaling.pop("keda", {})}
    worker = {"autoscaling": {"type": "keda", "keda": keda, **autoscaling}}
    [scaled] = by_kind(render({"worker": worker}), "ScaledObject").values()
    return {one["name"]: one for one in scaled["spec"]["triggers"]}


def test_workers_scale_by_metrics_that_the_service_has() -> None:
    ours = {metric.name for metric in GatewayMetrics(["fruit"]).registry.collect()}
    ours |= {metric.name for metric in WorkerMetrics().registry.collect()}
    found = triggers(minReplicas=0)
    assert list(found) == ["backlog", "oldest-age", "busy-slots", "wake"]
    for one in found.values():
        names = re.findall(r"(maskbit_\w+)\{", one["metadata"]["query"])
        assert names
        assert {name.removesuffix("_total") for name in names} <= ours
        assert 'namespace="pictures"' in one["metadata"]["query"]


def test_a_worker_wakes_by_what_is_turned_away_only_where_all_may_be_away() -> None:
    assert "wake" not in triggers(minReplicas=1)
    assert "busy-slots" not in triggers(keda={"busySlots": 0})


def test_thresholds_are_whole_strings_and_a_login_goes_with_every_trigger() -> None:
    found = triggers(
        keda={"backlog": 1_000_000, "oldestAgeSeconds": 2.5, "authenticationRef": {"name": "login"}}
    )
    assert [one["metadata"]["threshold"] for one in found.values()] == ["1000000", "2.5", "12"]
    assert {one["authenticationRef"]["name"] for one in found.values()} == {"login"}


def test_busy_slots_are_found_by_a_label_that_the_monitor_takes_from_the_pods() -> None:
    name = "a-model-with-a-long-nam"
    models = [{"name": name, "bundle": {"source": "image", "ref": "fruit"}}]
    keda = {"type": "keda", "keda": {"serverAddress": "http://prometheus:9090"}}
    values = {"models": models, "worker": {"autoscaling": keda}, "fullnameOverride": "a" * 32}
    manifests = render({**values, "monitoring": {"podMonitor": {"enabled": True}}})
    [monitor] = by_kind(manifests, "PodMonitor").values()
    [label] = monitor["spec"]["podTargetLabels"]
    # Kubernetes cuts the names of pods of a Deployment with more than 46 characters.
    worker = by_kind(manifests, "Deployment")[f"{'a' * 32}-worker-{name}"]
    assert worker["spec"]["template"]["metadata"]["labels"][label] == name
    [scaled] = by_kind(manifests, "ScaledObject").values()
    query = next(one for one in scaled["spec"]["triggers"] if one["name"] == "busy-slots")["metadata"][
        "query"
    ]
    # Prometheus has _ for what its labels cannot have.
    assert f'{re.sub("[^a-zA-Z0-9_]", "_", label)}="{name}"' in query


GATEWAYS = ("demo-maskbit-gateway-1", "demo-maskbit-gateway-2")
WORKERS = ("demo-maskbit-worker-fruit-6d4cf56db6-x7k2p", "demo-maskbit-worker-fruit-6d4cf56db6-b9z4d")
OTHERS = {
    'maskbit_queue_depth{namespace="pictures", model="other", kind="bulk"}': "500",
    'maskbit_queue_depth{namespace="elsewhere", model="fruit", kind="bulk"}': "500",
    'maskbit_slots_active{namespace="pictures", maskbit_model="fruit-two"}': "500",
    'maskbit_no_worker_total{namespace="pictures", model="other"}': "0+3x20",
    # Redis away, or Triton: no worker of a model would help.
    'maskbit_shed_total{namespace="pictures", reason="unavailable"}': "0+3x20",
}


def told(
    depth: str = "0", age: str = "0", slots: str = "0", refused: str = "0", workers: str = "1"
) -> dict[str, str]:
    """Series as Prometheus has them: all gateways tell of one queue."""
    series = dict(OTHERS)
    for pod in GATEWAYS:
        at = f'namespace="pictures", pod="{pod}"'
        for kind in ("interactive", "bulk"):
            series[f'maskbit_queue_depth{{{at}, model="fruit", kind="{kind}"}}'] = depth
            series[f'maskbit_oldest_job_age_seconds{{{at}, model="fruit", kind="{kind}"}}'] = age
        series[f'maskbit_no_worker_total{{{at}, model="fruit"}}'] = refused
        series[f'maskbit_workers{{{at}, model="fruit"}}'] = workers
    for pod in WORKERS if workers != "0" else ():
        series[f'maskbit_slots_active{{namespace="pictures", maskbit_model="fruit", pod="{pod}"}}'] = slots
    return series


DEMAND: dict[str, tuple[dict[str, str], dict[str, float | None]]] = {
    "nothing to do": (told(), {"backlog": 0, "oldest-age": 0, "busy-slots": 0, "wake": 0}),
    "jobs wait": (told("7", "40", "16"), {"backlog": 14, "oldest-age": 40, "busy-slots": 32, "wake": 0}),
    "all run": (told("0", "90", "9"), {"backlog": 0, "oldest-age": 0, "busy-slots": 18, "wake": 0}),
    "turned away, no worker": (
        told(refused="0+3x20", workers="0"),
        {"backlog": 0, "oldest-age": 0, "busy-slots": None, "wake": 1},
    ),
    "turned away, workers there": (
        told(refused="0+3x20"),
        {"backlog": 0, "oldest-age": 0, "busy-slots": 0, "wake": 0},
    ),
    "nobody asks, no worker": (
        told(workers="0"),
        {"backlog": 0, "oldest-age": 0, "busy-slots": None, "wake": 0},
    ),
    "Redis away": (OTHERS, {"backlog": None, "oldest-age": None, "busy-slots": None, "wake": None}),
}


def test_triggers_measure_the_demand_of_one_model_once(tmp_path: Path) -> None:
    found = triggers(minReplicas=0)
    asked = {name: one["metadata"]["query"] for name, one in found.items()}
    tests = [
        {
            "name": name,
            "interval": "15s",
            "input_series": [
                {"series": one, "values": values if "x" in values else f"{values}+0x20"}
                for one, values in series.items()
            ],
            "promql_expr_test": [
                {"expr": asked[trigger], "eval_time": "5m", "exp_samples": samples(value)}
                for trigger, value in expected.items()
            ],
        }
        for name, (series, expected) in DEMAND.items()
    ]
    file = tmp_path / "demand.yaml"
    file.write_text(yaml.safe_dump({"tests": tests}))
    promtool("test", "rules", file)
    # Where the queue is not known at all, KEDA fails, and so takes none away.
    blind = {name for name, one in found.items() if one["metadata"].get("ignoreNullValues") == "false"}
    assert blind == {"backlog", "oldest-age"}


def samples(value: float | None) -> list[dict[str, Any]]:
    """What promtool expects: KEDA takes a single sample."""
    return [] if value is None else [{"labels": "{}", "value": value}]


# -- monitoring ----------------------------------------------------------------------------------------------


def test_rules_and_dashboard_are_those_of_the_files() -> None:
    manifests, files = rendered("gpu"), CHART / "files"
    [rule] = by_kind(manifests, "PrometheusRule").values()
    groups = [
        yaml.safe_load((files / f"{name}.yaml").read_text())["groups"] for name in ("recording", "alerts")
    ]
    assert rule["spec"]["groups"] == [*groups[0], *groups[1]]
    dashboard = by_kind(manifests, "ConfigMap")["demo-maskbit-dashboard"]
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(dashboard["data"]["maskbit.json"]) == json.loads((files / "dashboard.json").read_text())
