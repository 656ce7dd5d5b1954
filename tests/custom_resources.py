"""What the chart may say in resources that are not Kubernetes' own, by the references of their operators."""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator

_TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}


def _object(needed: dict[str, Any], allowed: dict[str, Any] | None = None) -> dict[str, Any]:
    properties = {**needed, **(allowed or {})}
    return {
        "type": "object",
        "required": list(needed),
        "properties": properties,
        "additionalProperties": False,
    }


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


def _kind(api: str, kind: str, spec: dict[str, Any]) -> Validator:
    metadata = _object({"name": _TEXT, "labels": _TEXTS}, {"annotations": _TEXTS})
    schema = {"apiVersion": {"const": api}, "kind": {"const": kind}, "metadata": metadata, "spec": spec}
    return Draft202012Validator(_object(schema))


_SELECTOR = _object({"matchLabels": _TEXTS})
_ENDPOINTS = _list(_object({"port": _TEXT, "path": _TEXT, "interval": _TEXT}))
_TRIGGER = _object(
    {
        "name": _TEXT,
        "type": {"const": "prometheus"},
        "metricType": {"enum": ["AverageValue", "Value"]},
        "metadata": _object(
            {"serverAddress": _TEXT, "query": _TEXT, "threshold": _TEXT},
            {"ignoreNullValues": {"enum": ["true", "false"]}},
        ),
    },
    {"authenticationRef": _object({"name": _TEXT, "kind": _TEXT})},
)
_BEHAVIOR = _object({"scaleDown": _object({"stabilizationWindowSeconds": _COUNT})})
_RULE = _object(
    {"expr": {"type": ["string", "integer"]}},
    {
        **dict.fromkeys(("alert", "record", "for", "keep_firing_for"), _TEXT),
        **dict.fromkeys(("labels", "annotations"), _TEXTS),
    },
)
_MATCH = _object({"path": _object({"type": {"enum": ["Exact", "PathPrefix"]}, "value": _TEXT})})

CUSTOM: dict[str, Validator] = {
    "ScaledObject": _kind(
        "keda.sh/v1alpha1",
        "ScaledObject",
        _object(
            {
                "scaleTargetRef": _object({"name": _TEXT}),
                "minReplicaCount": _COUNT,
                "maxReplicaCount": _COUNT,
                "pollingInterval": _COUNT,
                "cooldownPeriod": _COUNT,
                "advanced": _object({"horizontalPodAutoscalerConfig": _object({"behavior": _BEHAVIOR})}),
                "triggers": _list(_TRIGGER),
            }
        ),
    ),
    "ServiceMonitor": _kind(
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
        _object({"selector": _SELECTOR, "endpoints": _ENDPOINTS}),
    ),
    "PodMonitor": _kind(
        "monitoring.coreos.com/v1",
        "PodMonitor",
        _object(
            {"selector": _SELECTOR, "podMetricsEndpoints": _ENDPOINTS}, {"podTargetLabels": _list(_TEXT)}
        ),
    ),
    "PrometheusRule": _kind(
        "monitoring.coreos.com/v1",
        "PrometheusRule",
        _object({"groups": _list(_object({"name": _TEXT, "rules": _list(_RULE)}, {"interval": _TEXT}))}),
    ),
    "HTTPRoute": _kind(
        "gateway.networking.k8s.io/v1",
        "HTTPRoute",
        _object(
            {
                "parentRefs": _list(_object({"name": _TEXT}, {"namespace": _TEXT, "sectionName": _TEXT})),
                "rules": _list(
                    _object(
                        {
                            "matches": _list(_MATCH),
                            "timeouts": _object({"request": _TEXT}),
                            "backendRefs": _list(_object({"name": _TEXT, "port": _COUNT})),
                        }
                    )
                ),
            },
            {"hostnames": _list(_TEXT)},
        ),
    ),
}
