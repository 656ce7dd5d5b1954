"""The Helm chart's values: documented, held to the service's settings, and refused where they are wrong."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import yaml
from helm_python.errors import HelmError

from service.settings import Settings
from tests.chart_fixtures import CHART, by_kind, cases, containers, merged, pod_specs, render, rendered
from tests.documents import ROOT

TEXT = (CHART / "values.yaml").read_text()
VALUES: dict[str, Any] = yaml.safe_load(TEXT)
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())


# -- documents -----------------------------------------------------------------------------------------------


def values_table() -> ModuleType:
    """The script that makes the table."""
    spec = importlib.util.spec_from_file_location("values_table", ROOT / "deploy/helm/values_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_in_the_readme_is_that_of_the_values() -> None:
    readme = (CHART / "README.md").read_text()
    assert values_table().filled(readme, TEXT) == readme, "run python deploy/helm/values_table.py"


def test_the_table_has_every_value() -> None:
    told = [row[0] for row in values_table().rows(TEXT) if not isinstance(row, str)]
    assert len(told) == len(set(told))
    for path in leaves(VALUES):
        assert any(path == one or path.startswith(f"{one}.") for one in told), path


def test_a_value_without_a_comment_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"values\.yaml: a\.c has no comment above it"):
        list(values_table().rows("a:\n  # what b is\n  b: 1\n  c: 2\n"))


def leaves(values: dict[str, Any], above: str = "") -> Iterator[str]:
    """Paths of all values that are no mappings, or empty ones."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


# -- the schema ----------------------------------------------------------------------------------------------


def resolved(schema: Any) -> dict[str, Any]:
    """A part of the schema without reference."""
    while "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    return dict(schema)


def test_no_level_of_the_schema_takes_unknown_keys() -> None:
    def check(part: Any, path: str) -> None:
        if isinstance(part, list):
            for index, one in enumerate(part):
                check(one, f"{path}[{index}]")
        elif isinstance(part, dict):
            if part.get("type") == "object" and path != ".properties.global":
                others = part["additionalProperties"]
                assert others is False or "type" in resolved(others), path
            for key, one in part.items():
                check(one, f"{path}.{key}")

    check(SCHEMA, "")


def test_schema_and_values_have_the_same_keys() -> None:
    def check(schema: Any, values: Any, path: str) -> None:
        schema = resolved(schema)
        if "properties" not in schema or not isinstance(values, dict) or not values:
            return
        assert set(schema["properties"]) - {"global"} - set(values) <= {"limits", "requests"}, path
        for key, value in values.items():
            check(schema["properties"][key], value, f"{path}.{key}")

    check(SCHEMA, VALUES, "")


def mappings(values: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all mappings, those in lists too."""
    if isinstance(values, dict):
        yield above
        for key, value in values.items():
            yield from mappings(value, (*above, key))
    elif isinstance(values, list):
        for index, value in enumerate(values):
            yield from mappings(value, (*above, index))


FREE = {
    *("labels", "annotations", "commonLabels", "podLabels", "podAnnotations", "nodeSelector", "matchLabels"),
    *("limits", "requests"),
}
EVERYWHERE = [
    (case, path)
    for case, values in {"": VALUES, **cases()}.items()
    for path in mappings(values)
    if case in ("", "gpu", "external-redis", "hub", "triton", "openshift") and not (path and path[-1] in FREE)
]


@pytest.mark.parametrize(("case", "path"), EVERYWHERE)
def test_an_unknown_key_is_refused_with_its_path(case: str, path: tuple[Any, ...]) -> None:
    values = json.loads(json.dumps(cases()[case] if case else VALUES))
    place = values
    for key in path:
        place = place[key]
    place["unknwon"] = 1
    with pytest.raises(HelmError, match="additional properties 'unknwon' not allowed") as caught:
        render(values)
    assert "at '" + "".join(f"/{key}" for key in path) + "'" in str(caught.value)


# -- settings ------------------------------------------------------------------------------------------------

OFFERED = {
    **{
        f"gateway.settings.{key}": key
        for key in resolved(SCHEMA["properties"]["gateway"])["properties"]["settings"]["properties"]
    },
    **{
        f"worker.settings.{key}": key
        for key in resolved(SCHEMA["$defs"]["worker"])["properties"]["settings"]["properties"]
    },
    **{f"queue.{key}": key for key in SCHEMA["properties"]["queue"]["properties"]},
}


def offered(path: str) -> dict[str, Any]:
    """The schema of a setting that the values offer."""
    part: Any = SCHEMA
    for key in path.split("."):
        part = resolved(part)["properties"][key]
    return resolved(part)


@pytest.mark.parametrize("path", sorted(OFFERED))
def test_a_setting_has_the_bounds_of_the_service(path: str) -> None:
    ours = offered(path)
    theirs: dict[str, Any] = Settings.model_json_schema()["properties"][OFFERED[path]]
    theirs = next((one for one in theirs.get("anyOf", []) if one.get("type") != "null"), theirs)
    if "enum" in ours:
        # noop draws nothing.
        assert [*theirs["enum"], None] == [
            *ours["enum"][:-1],
            *(["noop"] if "noop" in theirs["enum"] else []),
            None,
        ]
        return
    assert ours["type"] == [theirs["type"], "null"]
    bounds = ("minimum", "maximum", "exclusiveMinimum")
    assert {key: ours.get(key) for key in bounds} == {key: theirs.get(key) for key in bounds}


def test_every_setting_of_the_service_is_set_offered_or_of_no_use_here() -> None:
    names = {
        entry["name"]
        for case in cases()
        for _, pod in pod_specs(rendered(case))
        for one in containers(pod)
        for entry in one.get("env", [])
    }
    used = {name for name in Settings.model_fields if f"MASKBIT_{name.upper()}" in names}
    # The embedded Redis; keys in a variable, which a Secret's file replaces.
    assert used | set(OFFERED.values()) | {"state_dir", "api_keys"} == set(Settings.model_fields)


def test_numbers_and_words_reach_the_service_as_they_were_written() -> None:
    given = {
        "upload_bytes": 33_554_432,
        "body_timeout_s": 2.5,
        "trusted_proxies": "10.0.0.0/8",
        "decoders": None,
        "allowed_hosts": "a.example.com",
    }
    manifests = render({"gateway": {"settings": given}, "queue": {"open_jobs": 1_000_000}})
    pod = by_kind(manifests, "Deployment")["demo-maskbit-gateway"]["spec"]["template"]["spec"]
    env = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    assert env["MASKBIT_UPLOAD_BYTES"] == "33554432"
    assert env["MASKBIT_BODY_TIMEOUT_S"] == "2.5"
    assert env["MASKBIT_TRUSTED_PROXIES"] == "10.0.0.0/8"
    assert env["MASKBIT_OPEN_JOBS"] == "1000000"
    # helm test asks for that name.
    assert env["MASKBIT_ALLOWED_HOSTS"] == "a.example.com,demo-maskbit-gateway"
    assert "MASKBIT_DECODERS" not in env


def test_a_models_workers_differ_by_what_it_says_alone() -> None:
    bundle = {"source": "image", "ref": "fruit"}
    models = [
        {"name": "a", "bundle": bundle},
        {
            "name": "b",
            "bundle": bundle,
            "worker": {"replicas": 0, "resources": {"limits": {"memory": "9Gi"}}},
        },
    ]
    a, b = (
        one["spec"]
        for one in by_kind(render({"models": models, "worker": {"replicas": 3}}), "Deployment").values()
        if "worker" in one["metadata"]["name"]
    )
    assert (a["replicas"], b["replicas"]) == (3, 0)
    [first], [second] = (one["template"]["spec"]["containers"] for one in (a, b))
    assert second["resources"] == merged(first["resources"], {"limits": {"memory": "9Gi"}})
    assert second["env"] == first["env"]


@pytest.mark.parametrize(
    ("cpu", "device", "given", "threads"),
    [
        ("1", "cpu", None, "1"),
        ("1500m", "cpu", None, "2"),
        ("2000m", "cpu", None, "2"),
        ("250m", "cpu", None, "1"),
        ("2.5", "cpu", None, "3"),
        (16, "cpu", None, "16"),
        (None, "cpu", None, "0"),
        ("4", "cpu", 0, "0"),
        ("4", "cpu", 3, "3"),
        ("4", "cuda", None, None),
        ("4", "cuda", 2, "2"),
    ],
)
def test_a_worker_on_the_cpu_has_as_many_threads_as_it_asks_for_cores(
    cpu: str | int | None, device: str, given: int | None, threads: str | None
) -> None:
    requests = {"requests": {"cpu": cpu}}
    worker = {"device": device, "resources": requests, "settings": {"threads": given}}
    pod = by_kind(render({"worker": worker}), "Deployment")["demo-maskbit-worker-fruit"]["spec"]["template"]
    env = {one["name"]: one.get("value") for one in pod["spec"]["containers"][0]["env"]}
    assert env.get("MASKBIT_THREADS") == threads


@pytest.mark.parametrize(
    ("triton", "given", "runtime", "url"),
    [
        ({}, None, None, None),
        ({"externalUrl": "http://t:8000"}, None, "triton", "http://t:8000"),
        ({"externalUrl": "http://t:8000"}, "auto", "auto", "http://t:8000"),
        ({"externalUrl": "http://t:8000"}, "torch", "torch", None),
        (
            {"enabled": True, "repository": {"claim": "c"}},
            None,
            "triton",
            "grpc://demo-maskbit-triton:8001",
        ),
    ],
)
def test_workers_use_triton_where_there_is_one_unless_they_are_told_another(
    triton: dict[str, Any], given: str | None, runtime: str | None, url: str | None
) -> None:
    manifests = render({"triton": triton, "worker": {"settings": {"runtime": given}}})
    pod = by_kind(manifests, "Deployment")["demo-maskbit-worker-fruit"]["spec"]["template"]["spec"]
    env = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    assert (env.get("MASKBIT_RUNTIME"), env.get("MASKBIT_TRITON_URL")) == (runtime, url)


# -- wrong values --------------------------------------------------------------------------------------------

_BUNDLE = {"source": "image", "ref": "fruit"}


def model(**fields: Any) -> dict[str, Any]:
    """Values with one model."""
    return {"models": [{"name": "a", "bundle": _BUNDLE, **fields}]}


def bundle(**fields: Any) -> dict[str, Any]:
    """Values with one model of a bundle."""
    return model(bundle=fields)


def scaling(**fields: Any) -> dict[str, Any]:
    """Values with a scaling of the bundled model's workers."""
    return {"worker": {"autoscaling": fields}}


WRONG: list[tuple[dict[str, Any], str, str]] = [
    # by the schema
    ({"redis": {"mode": "cluster"}}, "/redis/mode", "'internal', 'external'"),
    ({"worker": {"device": "tpu"}}, "/worker/device", "'cpu', 'cuda'"),
    (model(worker={"settings": {"slots": 0}}), "/models/0/worker/settings/slots", "want 1"),
    (model(worker={"settings": {"runtime": "noop"}}), "/settings/runtime", "'tensorrt', 'triton'"),
    ({"gateway": {"replicas": "2"}}, "/gateway/replicas", "got string, want integer"),
    ({"drainSeconds": 0}, "/drainSeconds", "want 1"),
    ({"models": []}, "/models", "minItems: got 0, want 1"),
    (model(name="Fruit"), "/models/0/name", "^[a-z0-9]"),
    (bundle(source="s3", ref="x"), "/models/0/bundle/source", "'image', 'pvc', 'hub'"),
    (bundle(ref="fruit"), "/models/0/bundle", "missing property 'source'"),
    (bundle(source="image", ref="fruit,other"), "/models/0/bundle/ref", "does not match pattern"),
    ({"triton": {"image": {"digest": "sha256:1"}}}, "/triton/image/digest", "[0-9a-f]{64}"),
    ({"log": {"level": "trace"}}, "/log/level", "'debug', 'info', 'warning', 'error'"),
    ({"podSecurity": {"runAsUser": 0}}, "/podSecurity/runAsUser", "want 1"),
    ({"worker": {"resources": {"limits": {"memory": "4 GB"}}}}, "/worker/resources/limits/memory", "pattern"),
    ({"apiKeys": {"secret": "a b"}}, "/apiKeys/secret", "pattern"),
    ({"gateway": {"paths": ["v1"]}}, "/gateway/paths/0", "^/"),
    # by what they need of one another
    (
        {"worker": {"extraEnv": [{"name": "MASKBIT_SLOTS", "value": "1"}]}},
        "models[0].worker.extraEnv[0].name is MASKBIT_SLOTS",
        "allowed in models[0].worker.settings",
    ),
    (
        {"commonLabels": {"app.kubernetes.io/name": "x"}},
        "commonLabels has app.kubernetes.io/name",
        "all are allowed",
    ),
    (
        {"gateway": {"podLabels": {"maskbit-model": "x"}}},
        "gateway.podLabels has maskbit-model",
        "all are allowed",
    ),
    (bundle(source="pvc", ref="x"), "models[0].bundle.claim is empty", "with source pvc it is needed"),
    (bundle(source="hub", ref="a/b"), "models[0].bundle.revision is empty", "with source hub it is needed"),
    (bundle(source="hub", ref="b", revision="1"), "models[0].bundle.ref is b", "owner/name is needed"),
    (
        bundle(source="pvc", claim="c", ref="../x"),
        "models[0].bundle.ref is ../x",
        "a folder inside the claim",
    ),
    (
        bundle(source="image", ref="fruit", claim="c"),
        "models[0].bundle.claim is c",
        "nothing is allowed there",
    ),
    ({"models": [*model()["models"], *model()["models"]]}, "models[1].name is a", "one of its own"),
    (
        {"models": [*model(servedAs="x")["models"], *model(name="b", servedAs="x")["models"]]},
        "models[1] is served as x",
        "a name of its own",
    ),
    (scaling(type="keda"), "models[0].worker.autoscaling.keda.serverAddress is empty", "URL of a Prometheus"),
    (scaling(type="hpa", minReplicas=0), "models[0].worker.autoscaling.minReplicas is 0", "at least 1"),
    (
        scaling(type="hpa", minReplicas=9),
        "models[0].worker.autoscaling.minReplicas is 9",
        "at most maxReplicas, 4",
    ),
    (
        merged(scaling(type="hpa"), {"worker": {"resources": {"requests": {"cpu": None}}}}),
        "models[0].worker.resources.requests.cpu is empty",
        "it is needed",
    ),
    ({"worker": {"rollout": {"maxSurge": 0}}}, "models[0].worker.rollout.maxSurge", "one must be more"),
    ({"worker": {"settings": {"runtime": "triton"}}}, "settings.runtime is triton", "triton.externalUrl"),
    ({"triton": {"enabled": True}}, "triton.repository.claim is empty", "it is needed"),
    (
        {"triton": {"enabled": True, "externalUrl": "grpc://t:1", "repository": {"claim": "c"}}},
        "triton.externalUrl is grpc://t:1",
        "nothing is allowed there",
    ),
    ({"redis": {"mode": "external"}}, "redis.external.host is empty", "it is needed"),
    ({"redis": {"external": {"host": "r"}}}, "redis.external.host is r", "set redis.mode to external"),
    *(
        (
            {"redis": {"mode": "external", "external": {"host": host}}},
            f"redis.external.host is {host}",
            "the port in redis.external.port",
        )
        for host in ("redis.example.com:6379", "fd00::1", "[fd00::1]:6379")
    ),
    (
        {"worker": {"resources": {"limits": {"memory": "1Gi"}}}},
        "models[0].worker.resources.limits.memory is 1Gi",
        "at least resources.requests.memory, 2Gi,",
    ),
    (
        {"gateway": {"resources": {"limits": {"cpu": "250m"}}}},
        "gateway.resources.limits.cpu is 250m",
        "at least resources.requests.cpu, 500m,",
    ),
    (
        {"redis": {"internal": {"resources": {"requests": {"memory": 4_000_000_000}}}}},
        "redis.internal.resources.limits.memory is 2Gi",
        "at least resources.requests.memory, 4e+09,",
    ),
    (
        {"redis": {"internal": {"maxmemory": "2gb"}}},
        "redis.internal.maxmemory is 2gb",
        "less than redis.internal.resources.limits.memory, 2Gi,",
    ),
    (
        {"redis": {"mode": "external", "external": {"host": "r", "username": "u"}}},
        "redis.password.secret is empty",
        "it is needed",
    ),
    (
        {"redis": {"mode": "external", "external": {"host": "r", "tls": {"caSecret": "ca"}}}},
        "redis.external.tls.enabled is false",
        "it must be true",
    ),
    ({"networkPolicy": {"enabled": False}}, "redis.password.secret is empty", "it is needed"),
    (
        {**bundle(source="hub", ref="a/b", revision="1"), "hub": {"download": "job"}},
        "hub.cache.enabled is false",
        "it must be true",
    ),
    ({"apiKeys": {"secret": "keys"}}, "test.apiKey.secret is empty", "set test.enabled to false"),
    (
        {"gateway": {"httpRoute": {"enabled": True}}},
        "gateway.httpRoute.parentRefs is empty",
        "at least one Gateway",
    ),
    (
        {"gateway": {"autoscaling": {"enabled": True, "minReplicas": 20}}},
        "gateway.autoscaling.minReplicas is 20",
        "at most maxReplicas, 10",
    ),
]


@pytest.mark.parametrize(("values", "path", "allowed"), WRONG, ids=[path for _, path, _ in WRONG])
def test_a_wrong_value_fails_with_its_path_and_what_is_allowed(
    values: dict[str, Any], path: str, allowed: str
) -> None:
    with pytest.raises(HelmError) as caught:
        render(values)
    assert path in str(caught.value)
    assert allowed in str(caught.value)


def test_a_release_with_too_long_a_name_is_told_what_to_do() -> None:
    with pytest.raises(HelmError, match=r"has 38 characters, 32 are allowed: set fullnameOverride"):
        render(name="a" * 30)
    assert render({"fullnameOverride": "short"}, name="a" * 30)
