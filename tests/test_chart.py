"""The Helm chart: what it renders is valid for Kubernetes, whole, durable, and patient with what runs."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import tarfile
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import kubernetes_validate.utils as kubernetes
import pytest
import yaml
from helm_python.chart import lint, package
from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from referencing import Registry, Resource

from service.gateway import routes
from service.jobs.redis_server import check_settings
from service.settings import Settings
from tests.chart_fixtures import (
    CHART,
    Manifest,
    by_kind,
    cases,
    chart,
    containers,
    merged,
    pod_specs,
    render,
    rendered,
)
from tests.custom_resources import CUSTOM
from tests.documents import ROOT, read
from tests.gateway_harness import until

VERSIONS = ("1.30", "1.34", "1.37")
CASES = sorted(cases())


# -- Kubernetes ----------------------------------------------------------------------------------------------


@cache
def _validator(kind: str, api: str, version: str) -> Validator:
    """As kubernetes_validate.validate has it, made once: reading the definitions takes the most time."""
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api)
    folder = f"kubernetes-json-schema/v{version}.0-local-strict"
    schema = kubernetes.schema_contents(f"{folder}/{kind.lower()}-{group}.json", version)
    return Draft202012Validator(schema, registry=_definitions(folder, version))


@cache
def _definitions(folder: str, version: str) -> Registry[Any]:
    return (
        Resource.from_contents(kubernetes.schema_contents(f"{folder}/_definitions.json", version))
        @ Registry()
    )


def problems(manifest: Manifest, version: str) -> list[str]:
    """What Kubernetes of a version has against a manifest, unknown fields included."""
    kind = manifest["kind"]
    validator = CUSTOM[kind] if kind in CUSTOM else _validator(kind, manifest["apiVersion"], version)
    return [f"{kind} {error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


@pytest.mark.parametrize("case", CASES)
def test_every_manifest_is_strictly_valid_for_three_versions_of_kubernetes(case: str) -> None:
    for manifest in rendered(case):
        for version in VERSIONS:
            assert problems(manifest, version) == []


def test_the_validator_finds_what_kubernetes_validate_finds() -> None:
    [service] = by_kind(
        render({"redis": {"mode": "external", "external": {"host": "redis"}}}), "Service"
    ).values()
    wrong = merged(service, {"spec": {"type": 7, "portz": []}})
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(wrong, VERSIONS[0], strict=True)
    assert sorted(one.partition(":")[0] for one in problems(wrong, VERSIONS[0])) == [
        "Service $.spec",
        "Service $.spec.type",
    ]


@pytest.mark.parametrize("case", CASES)
def test_every_case_is_clean_to_strict_lint(case: str) -> None:
    report = lint(CHART, cases()[case], strict=True, namespace="pictures")
    assert report["errors"] == []
    assert [one for one in report["messages"] if one["severity"] > 1] == []


def test_a_package_renders_what_the_folder_does(tmp_path: Path) -> None:
    archive = Path(package(CHART, destination=tmp_path))
    assert archive.name == f"maskbit-{own_version()}.tgz"
    with tarfile.open(archive) as tar:
        packed = {member.name.removeprefix("maskbit/") for member in tar.getmembers()}
    files = {str(path.relative_to(CHART)) for path in CHART.rglob("*") if path.is_file()}
    assert packed == {one for one in files if "__pycache__" not in one}
    for case in ("gpu", "hub"):
        assert render(cases()[case], of=archive) == rendered(case)


def own_version() -> str:
    """The project's."""
    return str(tomllib.loads(read("pyproject.toml"))["project"]["version"])


@pytest.mark.parametrize("name", ["14", "1e5", "true"])
def test_a_release_may_be_called_like_a_number(name: str) -> None:
    for manifest in render(cases()["gpu"], name=name):
        assert problems(manifest, VERSIONS[-1]) == []
        assert manifest["metadata"]["labels"]["app.kubernetes.io/instance"] == name


# -- one whole -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_objects_have_names_of_their_own_and_the_labels_of_the_release(case: str) -> None:
    manifests = rendered(case)
    names = [(one["kind"], one["metadata"]["name"]) for one in manifests]
    assert len(names) == len(set(names))
    for one in manifests:
        assert len(one["metadata"]["name"]) <= 63
        labels = one["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "demo"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"


@pytest.mark.parametrize("case", CASES)
def test_whatever_selects_pods_selects_those_it_is_made_for(case: str) -> None:
    manifests = rendered(case)
    pods = {
        one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"]
        for one in manifests
        if "template" in one.get("spec", {})
    }
    for one in manifests:
        spec, kind, name = one.get("spec", {}), one["kind"], one["metadata"]["name"]
        if kind in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
            assert _selected(spec["selector"]["matchLabels"], pods) == {name}
        elif kind == "Service":
            assert _selected(spec["selector"], pods) == {name}
        elif kind == "ServiceMonitor":
            services = {key: its["metadata"]["labels"] for key, its in by_kind(manifests, "Service").items()}
            assert _selected(spec["selector"]["matchLabels"], services) == {name}
        elif kind == "PodMonitor":
            assert {found.startswith(name) for found in _selected(spec["selector"]["matchLabels"], pods)} == {
                True
            }


def _selected(selector: dict[str, str], labelled: dict[str, dict[str, str]]) -> set[str]:
    return {name for name, labels in labelled.items() if selector.items() <= labels.items()}


@pytest.mark.parametrize("case", CASES)
def test_what_scales_and_routes_leads_to_objects_that_exist(case: str) -> None:
    manifests = rendered(case)
    deployments, services = by_kind(manifests, "Deployment"), by_kind(manifests, "Service")
    for kind in ("HorizontalPodAutoscaler", "ScaledObject"):
        for one in by_kind(manifests, kind).values():
            target = deployments[one["spec"]["scaleTargetRef"]["name"]]
            assert "replicas" not in target["spec"], "an upgrade would undo the scaling"
    for one in by_kind(manifests, "Ingress").values():
        for rule in one["spec"]["rules"]:
            assert {path["backend"]["service"]["name"] for path in rule["http"]["paths"]} <= set(services)
    for one in by_kind(manifests, "HTTPRoute").values():
        for rule in one["spec"]["rules"]:
            assert len(rule["matches"]) <= 8
            [backend] = rule["backendRefs"]
            assert backend["port"] in [port["port"] for port in services[backend["name"]]["spec"]["ports"]]


@pytest.mark.parametrize("case", CASES)
def test_every_volume_is_used_and_every_mount_and_port_exists(case: str) -> None:
    for _, pod in pod_specs(rendered(case)):
        volumes = [one["name"] for one in pod.get("volumes", [])]
        mounts = [mount["name"] for one in containers(pod) for mount in one.get("volumeMounts", [])]
        assert len(volumes) == len(set(volumes))
        assert set(volumes) == set(mounts) - {"data"}
        for one in containers(pod):
            paths = [mount["mountPath"] for mount in one.get("volumeMounts", [])]
            assert len(paths) == len(set(paths))
            ports = {port["name"] for port in one.get("ports", [])}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                for kind in ("httpGet", "tcpSocket"):
                    assert one.get(probe, {}).get(kind, {}).get("port") in {*ports, None}


@pytest.mark.parametrize("case", CASES)
def test_what_a_pod_mounts_of_ours_is_there(case: str) -> None:
    manifests = rendered(case)
    known = {("configMap", name) for name in by_kind(manifests, "ConfigMap")}
    known |= {("claim", name) for name in by_kind(manifests, "PersistentVolumeClaim")}
    for _, pod in pod_specs(manifests):
        for volume in pod.get("volumes", []):
            used = ("configMap", volume.get("configMap", {}).get("name"))
            claim = ("claim", volume.get("persistentVolumeClaim", {}).get("claimName"))
            for kind, name in (used, claim):
                assert name is None or not name.startswith("demo") or (kind, name) in known


# -- patience ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_pods_are_given_longer_to_end_than_the_service_drains(case: str) -> None:
    drained = set()
    for _, pod in pod_specs(rendered(case)):
        for one in containers(pod):
            env = {entry["name"]: entry.get("value") for entry in one.get("env", [])}
            if "MASKBIT_DRAIN_S" not in env:
                continue
            pause = one.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            # docs/operations.md: that time and ten seconds more.
            assert pod["terminationGracePeriodSeconds"] == pause + float(env["MASKBIT_DRAIN_S"]) + 10
            assert float(env["MASKBIT_DRAIN_S"]) > Settings.model_fields["drain_s"].default
            assert (pause > 0) == (one["name"] == "gateway")
            drained.add(one["name"])
    assert drained == {"gateway", "worker"}


@pytest.mark.parametrize("case", CASES)
def test_long_running_containers_have_all_three_probes_and_others_none(case: str) -> None:
    probes = {"startupProbe", "livenessProbe", "readinessProbe"}
    for name, pod in pod_specs(rendered(case)):
        lasting = pod.get("restartPolicy", "Always") == "Always"
        for one in pod["containers"]:
            assert probes & set(one) == (probes if lasting else set()), name
    for name, deployment in by_kind(rendered(case), "Deployment").items():
        if "-worker-" in name:
            [worker] = deployment["spec"]["template"]["spec"]["containers"]
            paths = [worker[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
            assert [one["path"] for one in paths] == ["/startupz", "/livez", "/readyz"]
            assert {one["port"] for one in paths} == {"metrics"}
        elif "-gateway" in name:
            [gateway] = deployment["spec"]["template"]["spec"]["containers"]
            # Without workers too: jobs are still to be looked at, and what is turned away wakes one.
            assert gateway["readinessProbe"]["httpGet"] == {"path": "/readyz?workers=0", "port": "http"}


def test_weights_have_as_long_to_load_as_is_said() -> None:
    for seconds in (5, 7, 600):
        deployment = by_kind(render({"worker": {"startupSeconds": seconds}}), "Deployment")[
            "demo-maskbit-worker-fruit"
        ]
        probe = deployment["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
        assert seconds <= probe["periodSeconds"] * probe["failureThreshold"] < seconds + 5
        assert deployment["spec"]["progressDeadlineSeconds"] > seconds


# -- parts of the service ------------------------------------------------------------------------------------


def test_redis_runs_with_the_rendered_settings_and_loses_nothing(
    redis_executable: str, tmp_path: Path
) -> None:
    [config] = by_kind(render(), "ConfigMap").values()
    text = config["data"]["redis.conf"].replace("dir /data", f"dir {tmp_path}")
    socket, file = tmp_path / "redis.sock", tmp_path / "redis.conf"
    file.write_text(text)
    command = [
        redis_executable,
        str(file),
        "--port",
        "0",
        "--unixsocket",
        str(socket),
        "--requirepass",
        "secret",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            with Redis(unix_socket_path=str(socket), password="secret") as redis:
                until(lambda: _answers(redis))
                assert check_settings(redis) == []
                assert redis.config_get("maxmemory")["maxmemory"] == str(1 << 30)
                assert redis.config_get("save")["save"] == ""
        finally:
            process.terminate()


def _answers(redis: Redis) -> bool:
    try:
        return bool(redis.ping())
    except RedisConnectionError:
        return False


def test_routes_have_every_path_of_the_api_but_metrics_and_probes() -> None:
    modules = [
        import_module(f"{routes.__name__}.{one.name}") for one in pkgutil.iter_modules(routes.__path__)
    ]
    served = {"/static/page.js", *(route.path for module in modules for route in module.router.routes)}
    paths = yaml.safe_load((CHART / "values.yaml").read_text())["gateway"]["paths"]
    led = {path: {one for one in served if one == path or one.startswith(f"{path}/")} for path in paths}
    assert all(led.values()), led
    assert served - set().union(*led.values()) == {"/livez", "/readyz", "/metrics"}


def test_chart_project_and_compose_file_agree_on_versions() -> None:
    meta = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (meta["version"], meta["appVersion"]) == (own_version(), own_version())
    image = yaml.safe_load((CHART / "values.yaml").read_text())["redis"]["internal"]["image"]
    redis = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["redis"]["image"]
    assert redis.partition("@")[0] == f"{image['repository']}:{image['tag']}"


@pytest.mark.parametrize(
    ("case", "address"),
    [
        ("gpu", "https://pictures.example.com/"),
        ("external-redis", "pictures.example.com, by the protocol of the Gateway public"),
        ("hub", "kubectl -n pictures port-forward service/demo-maskbit-gateway 8000:80"),
    ],
)
def test_the_notes_say_where_the_service_is_reached(case: str, address: str) -> None:
    files = chart().render(dict(cases()[case]), name="demo", namespace="pictures")
    assert f"Reach it:\n\n  {address}\n" in files["maskbit/templates/NOTES.txt"]
