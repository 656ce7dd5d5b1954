"""The Helm chart as Kubernetes gets it: rendered by Helm's own engine, for values of many kinds."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from helm_python.chart import Chart

from tests.documents import ROOT

CHART = ROOT / "deploy/helm/maskbit"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))

Values = Mapping[str, Any]
Manifest = dict[str, Any]

_KEDA = {"serverAddress": "http://prometheus:9090"}
_HUB = {"source": "hub", "ref": "owner/name", "revision": "v1"}
_CACHE = {"enabled": True, "existingClaim": "cache"}


def _model(bundle: Values, name: str = "other") -> dict[str, Any]:
    return {"name": name, "bundle": bundle}


_FRUIT = _model({"source": "image", "ref": "fruit"}, "fruit")
_CLAIM = {"source": "pvc", "claim": "models", "ref": "bundles/other"}
_TLS = {"enabled": True, "caSecret": "ca", "certSecret": "cert"}

# Each axis says one thing in several ways; the first is the default.
AXES: tuple[tuple[Values, ...], ...] = (
    (
        {},
        {"models": [_FRUIT, _model(_CLAIM)]},
        {"models": [_model({**_CLAIM, "manifestConfigMap": "manifest"})]},
        {"models": [_FRUIT, _model(_HUB)], "hub": {"token": {"secret": "hub"}}},
        {"models": [_model({**_HUB, "manifestConfigMap": "m"})], "hub": {"cache": {"enabled": True}}},
        {"models": [_model(_HUB), _FRUIT], "hub": {"download": "job", "cache": _CACHE}},
    ),
    (
        {},
        {"redis": {"password": {"secret": "redis"}}},
        {"redis": {"mode": "external", "external": {"host": "redis.example.com"}}},
        {
            "redis": {
                "mode": "external",
                "password": {"secret": "redis"},
                "external": {"host": "redis.example.com", "username": "maskbit", "tls": _TLS},
            }
        },
    ),
    (
        {},
        {"worker": {"autoscaling": {"type": "hpa"}}},
        {"worker": {"autoscaling": {"type": "keda", "keda": _KEDA}}},
        {"worker": {"autoscaling": {"type": "keda", "minReplicas": 0, "keda": _KEDA}}},
    ),
    ({}, {"worker": {"device": "cuda", "runtimeClassName": "nvidia", "settings": {"slots": 64}}}),
    (
        {},
        {"gateway": {"ingress": {"enabled": True, "hosts": ["a.example.com"], "tls": {"secret": "tls"}}}},
        {"gateway": {"ingress": {"enabled": True}, "autoscaling": {"enabled": True}}},
        {"gateway": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]}}},
    ),
    (
        {},
        {"triton": {"enabled": True, "repository": {"claim": "triton"}}},
        {"triton": {"externalUrl": "grpc://triton:8001"}},
    ),
    (
        {},
        {
            "monitoring": {
                kind: {"enabled": True}
                for kind in ("serviceMonitor", "podMonitor", "prometheusRule", "dashboard")
            }
        },
    ),
    (
        {},
        {"apiKeys": {"secret": "keys"}, "test": {"apiKey": {"secret": "key"}}},
        {"test": {"enabled": False}},
    ),
    (
        {},
        {"networkPolicy": {"enabled": False}, "redis": {"password": {"secret": "redis"}}},
        {"networkPolicy": {"gateway": {"from": [{"podSelector": {}}]}, "redisTo": [{"podSelector": {}}]}},
    ),
    (
        {},
        {
            "priorityClasses": {"create": True},
            "podSecurity": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
            "commonLabels": {"team": "pictures"},
            "topologySpread": {"enabled": False},
            "serviceAccount": {"create": False},
        },
    ),
)

# Names that YAML takes for something else where they stand bare.
_NUMBERS: Values = {
    "models": [
        _model({**_CLAIM, "claim": "123", "ref": "5", "manifestConfigMap": "0x1f"}, "14"),
        _model({**_HUB, "revision": "1e5"}, "true"),
        _model({"source": "image", "ref": "1_000", "manifestConfigMap": "null"}, "1e5"),
    ],
    "nameOverride": "12",
    "images": {"registry": "10", "tag": "30", "pullSecrets": ["7"]},
    "hub": {
        "token": {"secret": "8", "key": "9"},
        "cache": {"enabled": True, "storageClass": "10", "size": 5},
    },
    "apiKeys": {"secret": "11", "key": "12"},
    "serviceAccount": {"name": "13"},
    "topologySpread": {"keys": ["14"]},
    "gateway": {
        "priorityClassName": "15",
        "settings": {"allowed_hosts": "16"},
        "ingress": {"enabled": True, "className": "17", "hosts": ["18"], "tls": {"secret": "19"}},
        "httpRoute": {"enabled": True, "parentRefs": [{"name": "20"}], "requestTimeout": "21s"},
    },
    "worker": {
        "runtimeClassName": "22",
        "nodeSelector": {"23": "24"},
        "podLabels": {"25": "26"},
        "autoscaling": {"type": "keda", "keda": {**_KEDA, "authenticationRef": {"name": "27"}}},
    },
    "redis": {
        "password": {"secret": "28", "key": "29"},
        "internal": {"storage": {"class": "30", "size": 31}},
    },
    "triton": {"enabled": True, "repository": {"claim": "32", "path": "33"}, "shmSize": 34},
    "monitoring": {"podMonitor": {"enabled": True}, "labels": {"release": "35"}},
    "test": {"apiKey": {"secret": "36", "key": "37"}},
    "commonLabels": {"team": "38"},
}
_CERTIFICATES: Values = {
    "models": [_model({**_HUB, "manifestConfigMap": "no"}, "0")],
    "hub": {"download": "job", "cache": {"enabled": True, "existingClaim": "1"}},
    "redis": {
        "mode": "external",
        "external": {"host": "2", "tls": {"enabled": True, "caSecret": "3", "certSecret": "4"}},
    },
}


def merged(*parts: Values) -> dict[str, Any]:
    """Values over one another, as Helm does with several files."""
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            below = result.get(key)
            both = isinstance(value, Mapping) and isinstance(below, Mapping)
            result[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return result


def _pairs(choice: tuple[int, ...]) -> set[tuple[tuple[int, int], tuple[int, int]]]:
    return set(itertools.combinations(enumerate(choice), 2))


def covering() -> list[tuple[int, ...]]:
    """Choices of one way on each axis, such that any two ways of two axes meet in one of them."""
    draw = random.Random(0)
    open_pairs = {
        ((i, one), (k, other))
        for (i, a), (k, b) in itertools.combinations(enumerate(AXES), 2)
        for one, other in itertools.product(range(len(a)), range(len(b)))
    }
    found = [tuple(0 for _ in AXES)]
    open_pairs -= _pairs(found[0])
    while open_pairs:
        tries = [tuple(draw.randrange(len(axis)) for axis in AXES) for _ in range(50)]
        best = max(tries, key=lambda one: len(_pairs(one) & open_pairs))
        if closed := _pairs(best) & open_pairs:
            open_pairs -= closed
            found.append(best)
    return found


@cache
def cases() -> dict[str, dict[str, Any]]:
    """Values by name: the examples, combinations of all axes, and names that look like numbers."""
    found: dict[str, dict[str, Any]] = {path.stem: yaml.safe_load(path.read_text()) for path in EXAMPLES}
    for choice in covering():
        values = merged(*(axis[one] for axis, one in zip(AXES, choice, strict=True)))
        found["-".join(map(str, choice))] = values
    return found | {"numbers": dict(_NUMBERS), "numbers-external": dict(_CERTIFICATES)}


@cache
def chart(path: Path = CHART) -> Chart:
    """The chart, loaded once."""
    return Chart.load(path)


def render(values: Values | None = None, *, of: Path = CHART, name: str = "demo") -> list[Manifest]:
    """All manifests, without the notes. Raises what Helm does."""
    files = chart(of).render(dict(values or {}), name=name, namespace="pictures")
    texts = (text for path, text in files.items() if path.endswith(".yaml"))
    return [one for text in texts for one in yaml.load_all(text, yaml.CSafeLoader) if one]


@cache
def rendered(case: str) -> list[Manifest]:
    """The manifests of a case; read only."""
    return render(cases()[case])


def pod_specs(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Name of the object and specification of every pod."""
    for one in manifests:
        if one["kind"] == "Pod":
            yield one["metadata"]["name"], one["spec"]
        elif "template" in one.get("spec", {}):
            yield one["metadata"]["name"], one["spec"]["template"]["spec"]


def containers(pod: Manifest) -> list[Manifest]:
    """All containers of a pod."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def by_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """The objects of one kind by name."""
    return {one["metadata"]["name"]: one for one in manifests if one["kind"] == kind}
