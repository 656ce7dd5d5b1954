"""The Helm chart keeps to Pod Security's restricted level, names each Secret, and lets out only what must."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

import pytest

from service.settings import Settings
from tests.chart_fixtures import Manifest, by_kind, cases, containers, merged, pod_specs, render, rendered

CASES = sorted(cases())
SETTINGS = {f"MASKBIT_{name.upper()}" for name in Settings.model_fields}
# Of others: the home folder, the Hub's client, OpenTelemetry, redis-cli, part of our own URL, a client's key.
FOREIGN = {
    *("HOME", "HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    *("REDISCLI_AUTH", "REDIS_PASSWORD", "MASKBIT_API_KEY"),
}


# -- Pod Security --------------------------------------------------------------------------------------------

# By https://kubernetes.io/docs/concepts/security/pod-security-standards, policy "restricted".
RESTRICTED_VOLUMES = {
    *(
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    )
}


def restricted(pod: Manifest) -> Iterator[str]:
    """Where a pod breaks the policy, baseline included."""
    yield from (key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key))
    for volume in pod.get("volumes", []):
        if not set(volume) - {"name"} <= RESTRICTED_VOLUMES:
            yield f"volume {volume}"
    whole = pod.get("securityContext", {})
    if whole.get("sysctls"):
        yield "sysctls"
    if whole.get("runAsUser") == 0:
        yield "runAsUser"
    for one in containers(pod):
        yield from (f"{one['name']}: {what}" for what in _restricted(one, whole))


def _restricted(one: Manifest, whole: Manifest) -> Iterator[str]:
    own = one.get("securityContext", {})
    capabilities = own.get("capabilities", {})
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation"
    if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "capabilities"
    if not own.get("runAsNonRoot", whole.get("runAsNonRoot")):
        yield "runAsNonRoot"
    if own.get("runAsUser") == 0:
        yield "runAsUser"
    profile = own.get("seccompProfile", whole.get("seccompProfile", {}))
    if profile.get("type") not in ("RuntimeDefault", "Localhost"):
        yield "seccompProfile"
    if "procMount" in own or any("hostPort" in port for port in one.get("ports", [])):
        yield "procMount or hostPort"
    handlers = [*(one.get(f"{kind}Probe", {}) for kind in ("startup", "liveness", "readiness"))]
    handlers += one.get("lifecycle", {}).values()
    if any("host" in handler.get(kind, {}) for handler in handlers for kind in ("httpGet", "tcpSocket")):
        yield "host in a probe or hook"


@pytest.mark.parametrize("case", CASES)
def test_every_pod_is_restricted(case: str) -> None:
    for name, pod in pod_specs(rendered(case)):
        assert list(restricted(pod)) == [], name


@pytest.mark.parametrize(
    "change",
    [
        {"hostNetwork": True},
        {"volumes": [{"name": "a", "hostPath": {"path": "/"}}]},
        {"securityContext": {"runAsNonRoot": False}},
        {"securityContext": {"seccompProfile": {"type": "Unconfined"}}},
        {"containers": [{"name": "plain"}]},
    ],
)
def test_the_check_sees_a_pod_that_is_not(change: dict[str, Any]) -> None:
    for _, pod in pod_specs(render()):
        assert list(restricted(merged(pod, change)))


@pytest.mark.parametrize("case", CASES)
def test_no_pod_writes_to_its_image_talks_to_kubernetes_or_goes_without_limits(case: str) -> None:
    for _, pod in pod_specs(rendered(case)):
        assert pod["automountServiceAccountToken"] is False
        # A Service called maskbit would set MASKBIT_PORT.
        assert pod["enableServiceLinks"] is False
        for one in containers(pod):
            assert one["securityContext"]["readOnlyRootFilesystem"] is True
            assert "memory" in one["resources"]["limits"]
            assert {"cpu", "memory"} <= set(one["resources"]["requests"])
            assert one["terminationMessagePolicy"] == "FallbackToLogsOnError"


@pytest.mark.parametrize("case", CASES)
def test_what_holds_models_and_secrets_is_mounted_read_only(case: str) -> None:
    for _, pod in pod_specs(rendered(case)):
        kinds = {volume["name"]: next(iter(set(volume) - {"name"})) for volume in pod.get("volumes", [])}
        for one in pod["containers"]:
            for mount in one.get("volumeMounts", []):
                writable = kinds.get(mount["name"]) == "emptyDir" or mount["name"] == "data"
                downloads = one["command"][:2] == ["maskbit", "inspect"]
                assert mount.get("readOnly") or writable or downloads, mount
                # What is mounted by itself never changes: neither keys nor revisions would be renewed.
                assert "subPath" not in mount


# -- variables and Secrets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_every_variable_is_a_setting_of_the_service(case: str) -> None:
    for _, pod in pod_specs(rendered(case)):
        for one in containers(pod):
            names = [entry["name"] for entry in one.get("env", [])]
            assert len(names) == len(set(names))
            assert set(names) <= SETTINGS | FOREIGN


@pytest.mark.parametrize("case", CASES)
def test_settings_of_gateways_and_workers_are_accepted_by_the_service(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"gateway": 0, "worker": 0}
    for _, pod in pod_specs(rendered(case)):
        main = pod["containers"][0]
        if main["name"] not in found:
            continue
        found[main["name"]] += 1
        with monkeypatch.context() as patch:
            for entry in main["env"]:
                patch.setenv(
                    entry["name"], entry.get("value", "secret").replace("$(REDIS_PASSWORD)", "secret")
                )
            settings = Settings()
        assert settings.redis_url
        assert not settings.redis_url.startswith("unix")
        assert len(settings.bundles) == (1 if main["name"] == "worker" else len(models(case)))
    assert found == {"gateway": 1, "worker": len(models(case))}


def models(case: str) -> list[Any]:
    """The models of a case."""
    return list(cases()[case].get("models", [{}]))


@pytest.mark.parametrize("case", CASES)
def test_secrets_are_those_that_the_values_name_and_none_is_made(case: str) -> None:
    manifests = rendered(case)
    assert not by_kind(manifests, "Secret")
    named = set(_named_secrets(cases()[case]))
    used = set(_used_secrets(manifests))
    assert used <= named
    unused = named - used
    assert unused <= {cases()[case].get("test", {}).get("apiKey", {}).get("secret")}


def _named_secrets(values: Any) -> Iterator[str]:
    if isinstance(values, dict):
        for key, value in values.items():
            if isinstance(value, str) and value and key in ("secret", "caSecret", "certSecret"):
                yield value
            yield from value if key == "pullSecrets" else _named_secrets(value)


def _used_secrets(manifests: list[Manifest]) -> Iterator[str]:
    for one in by_kind(manifests, "Ingress").values():
        yield from (tls["secretName"] for tls in one["spec"].get("tls", []))
    for _, pod in pod_specs(manifests):
        yield from (secret["name"] for secret in pod.get("imagePullSecrets", []))
        yield from (one["secret"]["secretName"] for one in pod.get("volumes", []) if "secret" in one)
        for container in containers(pod):
            for entry in container.get("env", []):
                if reference := entry.get("valueFrom", {}).get("secretKeyRef"):
                    assert not reference.get("optional"), "a missing Secret has to be seen"
                    yield reference["name"]


def test_no_manifest_has_a_password_in_clear() -> None:
    manifests = rendered("external-redis")
    [url] = {
        entry["value"]
        for _, pod in pod_specs(manifests)
        for one in containers(pod)
        for entry in one.get("env", [])
        if entry["name"] == "MASKBIT_REDIS_URL"
    }
    assert url == (
        "rediss://maskbit:$(REDIS_PASSWORD)@redis.example.com:6380/0?ssl_ca_certs=/etc/maskbit/redis-ca/ca.crt"
        "&ssl_certfile=/etc/maskbit/redis-tls/tls.crt&ssl_keyfile=/etc/maskbit/redis-tls/tls.key"
    )
    for _, pod in pod_specs(manifests):
        for one in containers(pod):
            names = [entry["name"] for entry in one.get("env", [])]
            # Kubernetes puts in only what was said before.
            assert "MASKBIT_REDIS_URL" not in names or names.index("REDIS_PASSWORD") < names.index(
                "MASKBIT_REDIS_URL"
            )


# -- network -------------------------------------------------------------------------------------------------

OUTSIDE = ipaddress.IPv4Address("93.184.216.34")
OUTSIDE_6 = ipaddress.IPv6Address("2600:1f18::1")
PRIVATE_6 = ipaddress.IPv6Address("fd00::1")
CLOUD_METADATA = ipaddress.IPv4Address("169.254.169.254")
NODE_DNS = ipaddress.IPv4Address("169.254.20.10")
KUBE_DNS = {"k8s-app": "kube-dns"}

Pod = dict[str, str] | ipaddress.IPv4Address | ipaddress.IPv6Address


def labels(manifests: list[Manifest], component: str) -> dict[str, str]:
    """The labels of the first pod of a component."""
    for one in manifests:
        its = (
            one["metadata"]
            if one["kind"] == "Pod"
            else one.get("spec", {}).get("template", {}).get("metadata", {})
        )
        found = its.get("labels", {})
        if found.get("app.kubernetes.io/component") == component:
            return dict(found)
    raise LookupError(component)


def allowed(manifests: list[Manifest], direction: str, pod: dict[str, str], other: Pod, port: int) -> bool:
    """Whether the policies let `pod` talk to `other` (out) or be talked to by it (in)."""
    key, peers = ("egress", "to") if direction == "out" else ("ingress", "from")
    policies = [
        one["spec"]
        for one in by_kind(manifests, "NetworkPolicy").values()
        if key.capitalize() in one["spec"]["policyTypes"] and _matches(one["spec"]["podSelector"], pod)
    ]
    if not policies:
        return True
    rules = [rule for policy in policies for rule in policy.get(key, [])]
    return any(
        port in [one["port"] for one in rule["ports"]]
        and (peers not in rule or any(_is_peer(peer, other) for peer in rule[peers]))
        for rule in rules
    )


def _matches(selector: Manifest, its: dict[str, str]) -> bool:
    return selector.get("matchLabels", {}).items() <= its.items() and all(
        its.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", [])
    )


def _is_peer(peer: Manifest, other: Pod) -> bool:
    if isinstance(other, dict):
        # Those of another namespace are met by namespaceSelector alone here.
        foreign = other is KUBE_DNS
        if "namespaceSelector" in peer:
            return foreign or peer["namespaceSelector"] == {}
        return not foreign and "podSelector" in peer and _matches(peer["podSelector"], other)
    if "ipBlock" not in peer:
        return False
    block = peer["ipBlock"]
    inside = other in ipaddress.ip_network(block["cidr"])
    return inside and not any(other in ipaddress.ip_network(one) for one in block.get("except", []))


@pytest.mark.parametrize(
    "case", [case for case in CASES if cases()[case].get("networkPolicy", {}).get("enabled", True)]
)
def test_pods_reach_what_they_need_and_nothing_else(case: str) -> None:
    manifests, values = rendered(case), cases()[case]
    dns = values.get("networkPolicy", {}).get("dns", {}).get("port", 53)
    internal = values.get("redis", {}).get("mode", "internal") == "internal"
    gateway, worker = labels(manifests, "gateway"), labels(manifests, "worker")
    for pod in (gateway, worker):
        assert allowed(manifests, "out", pod, KUBE_DNS, dns)
        for port in (22, 80, 443):
            assert not allowed(manifests, "out", pod, CLOUD_METADATA, port)
        assert not allowed(manifests, "out", pod, OUTSIDE, 80)
        if internal:
            redis = labels(manifests, "redis")
            assert allowed(manifests, "out", pod, redis, 6379)
            assert allowed(manifests, "in", redis, pod, 6379)
            assert not allowed(manifests, "out", redis, OUTSIDE, 443)
            assert not allowed(manifests, "in", redis, {"app": "stranger"}, 6379)
        else:
            assert allowed(manifests, "out", pod, external_redis(case), redis_port(case))
    assert not allowed(manifests, "out", gateway, worker, 9090)
    assert not allowed(manifests, "in", worker, {"app": "stranger"}, 8000)
    if values.get("test", {}).get("enabled", True):
        test = labels(manifests, "test")
        assert allowed(manifests, "out", test, gateway, 8000)
        assert allowed(manifests, "in", gateway, test, 8000)
        assert not allowed(manifests, "out", test, OUTSIDE, 443)
    if values.get("triton", {}).get("enabled"):
        triton = labels(manifests, "triton")
        assert allowed(manifests, "out", worker, triton, 8001)
        assert allowed(manifests, "in", triton, worker, 8001)
        assert not allowed(manifests, "out", triton, OUTSIDE, 443)


def external_redis(case: str) -> Pod:
    """Somebody at the address where the Redis of a case is, by its policy."""
    [peer, *_] = cases()[case].get("networkPolicy", {}).get("redisTo") or [{"podSelector": {}}]
    if "ipBlock" in peer:
        return next(ipaddress.IPv4Network(peer["ipBlock"]["cidr"]).hosts())
    return {"app": "redis"}


def redis_port(case: str) -> int:
    """The port of the Redis of a case."""
    return int(cases()[case]["redis"]["external"].get("port", 6379))


def test_only_workers_that_download_have_a_way_out() -> None:
    fruit = {"name": "fruit", "bundle": {"source": "image", "ref": "fruit"}}
    hub = {
        "name": "hub",
        "bundle": {"source": "hub", "ref": "a/b", "revision": "v1", "manifestConfigMap": "m"},
    }
    models = {"models": [fruit, hub]}
    cache = {"enabled": True}
    for download, out in (("pod", {"hub"}), ("job", set())):
        manifests = render({**models, "hub": {"download": download, "cache": cache}})
        deployments = by_kind(manifests, "Deployment").values()
        pods = [one["spec"]["template"]["metadata"]["labels"] for one in deployments]
        free = {
            pod.get("maskbit-model", "gateway")
            for pod in pods
            if allowed(manifests, "out", pod, OUTSIDE, 443)
        }
        assert free == out
        if download == "job":
            assert allowed(manifests, "out", labels(manifests, "hub"), OUTSIDE, 443)
            assert not allowed(manifests, "out", labels(manifests, "hub"), CLOUD_METADATA, 443)


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("https://huggingface.co", 443),
        ("https://mirror.example.com:8443/hub", 8443),
        ("http://mirror", 80),
        ("http://[fd00::2]:81", 81),
    ],
)
def test_downloads_may_reach_the_port_of_the_hub_alone_in_both_families(endpoint: str, port: int) -> None:
    hub = {"name": "hub", "bundle": {"source": "hub", "ref": "a/b", "revision": "v1"}}
    manifests = render({"models": [hub], "hub": {"endpoint": endpoint}})
    for pod in (labels(manifests, "gateway"), labels(manifests, "worker")):
        for address in (OUTSIDE, OUTSIDE_6):
            found = {one for one in (80, 81, 443, 8443) if allowed(manifests, "out", pod, address, one)}
            assert found == {port}
        assert not allowed(manifests, "out", pod, PRIVATE_6, port)
        assert allowed(manifests, "out", pod, NODE_DNS, 53)
        assert not allowed(manifests, "out", pod, NODE_DNS, port)


def test_a_worker_downloads_nothing_itself() -> None:
    for case in CASES:
        for name, pod in pod_specs(rendered(case)):
            for one in pod["containers"]:
                env = {entry["name"]: entry.get("value") for entry in one.get("env", [])}
                if (env.get("MASKBIT_BUNDLE") or "").startswith("hf://"):
                    assert env["HF_HUB_OFFLINE"] == "1", name
                    assert "HF_TOKEN" not in env, name
