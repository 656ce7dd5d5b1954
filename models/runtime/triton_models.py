"""The Triton models of a bundle: their names, what tells them apart, and whether a server has them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from models.bundle import Bundle
from models.errors import ConfigError, RuntimeUnavailable
from models.signature import GraphSpec, TensorSpec, graph_specs

TIMEOUT_S, DEADLINE_S = 60.0, 120.0
"""Of one try of a call, and of a call with all its tries, if nothing else is asked for."""
GRAPH = "maskbit.graph"
_BUNDLE, _PRECISION = "maskbit.bundle.", "maskbit.precision."
_TYPES = {"uint8": "UINT8", "int64": "INT64", "float32": "FP32"}
_EXPORT = "maskbit export triton"

Config = Mapping[str, Any]
"""A model's configuration as Triton gives it in JSON."""


@dataclass(frozen=True)
class Version:
    """What one version of a Triton model computes: `bundle` is a bundle's ref."""

    bundle: str
    precision: str

    def parameters(self, number: int) -> Iterator[tuple[str, str]]:
        """Keys and values in a model's configuration that say so of version `number`."""
        yield f"{_BUNDLE}{number}", self.bundle
        yield f"{_PRECISION}{number}", self.precision


@dataclass(frozen=True)
class Served:
    """The number of the version that computes a bundle; `rows` are each graph's batch sizes, ascending."""

    number: int
    precision: str
    rows: Mapping[str, tuple[int, ...]]


class Catalogue(Protocol):
    """A server, as far as it tells what it serves; TritonTrouble where it does not."""

    def config(self, model: str) -> Config | None:
        """The configuration of a model, None where there is no such model."""

    def is_ready(self, model: str, version: int) -> bool:
        """Whether a version of a model can be run."""


def model_name(bundle_name: str, graph: str) -> str:
    """The Triton model of a graph. Raises ConfigError for a bundle whose name is not fit for a folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", bundle_name):
        raise ConfigError(
            f"the bundle is called {bundle_name!r}; Triton needs a name of letters, digits, '.', '_' and '-'"
        )
    return f"{bundle_name}_{graph}"


def triton_type(spec: TensorSpec) -> str:
    """Triton's name for the type of a tensor."""
    return _TYPES[spec.dtype]


def dims_of(spec: TensorSpec) -> tuple[int, ...]:
    """Dimensions beside the batch as Triton has them: at least one."""
    return spec.shape or (1,)


def signature_of(spec: GraphSpec) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and dimensions of every input and output of a graph, by name, as a configuration lists them."""
    return {one.name: (f"TYPE_{triton_type(one)}", dims_of(one)) for one in (*spec.inputs, *spec.outputs)}


def find_models(server: Catalogue, bundle: Bundle, precision: str) -> Served:
    """Which version of its models `server` is to be asked for; `precision` may be `auto`.

    Raises RuntimeUnavailable that says what is served instead, or what is missing.
    """
    models = {graph: model_name(bundle.manifest.name, graph) for graph in graph_specs(bundle.manifest)}
    configs = {
        graph: _checked(server.config(models[graph]), models[graph], spec)
        for graph, spec in graph_specs(bundle.manifest).items()
    }
    number, version = _choose([_versions(config) for config in configs.values()], bundle.ref, precision)
    for model in models.values():
        if not server.is_ready(model, number):
            raise RuntimeUnavailable(
                f"version {number} of its model {model} is not ready; the server's log has the reason"
            )
    return Served(number, version.precision, {graph: _rows(config) for graph, config in configs.items()})


def _checked(config: Config | None, model: str, spec: GraphSpec) -> Config:
    """`config`, if that is what the exporter writes for the graph `spec`."""
    if config is None:
        raise RuntimeUnavailable(f"it serves no model {model}; make its repository with: {_EXPORT}")
    tensors = [*config.get("input", ()), *config.get("output", ())]
    signature = {one["name"]: (one["data_type"], tuple(map(int, one["dims"]))) for one in tensors}
    if _parameters(config).get(GRAPH) != spec.name or signature != signature_of(spec) or not _rows(config):
        raise RuntimeUnavailable(
            f"its model {model} is not one of this bundle; make its repository with: {_EXPORT}"
        )
    return config


def _rows(config: Config) -> tuple[int, ...]:
    return tuple(map(int, config.get("dynamic_batching", {}).get("preferred_batch_size", ())))


def _parameters(config: Config) -> dict[str, str]:
    return {key: value.get("string_value", "") for key, value in config.get("parameters", {}).items()}


def _versions(config: Config) -> dict[int, Version]:
    """What a model's parameters say of its versions, by number."""
    parameters = _parameters(config)
    return {
        int(number): Version(bundle, parameters.get(f"{_PRECISION}{number}", ""))
        for key, bundle in parameters.items()
        if (number := key.removeprefix(_BUNDLE)) != key and number.isdecimal()
    }


def _choose(models: Iterable[Mapping[int, Version]], ref: str, precision: str) -> tuple[int, Version]:
    """The newest version that all models have of the bundle `ref` in `precision`."""
    first, *others = models
    common = {
        number: one for number, one in first.items() if all(other.get(number) == one for other in others)
    }
    fitting = [
        number for number, one in common.items() if one.bundle == ref and precision in ("auto", one.precision)
    ]
    if not fitting:
        served = sorted({f"{one.bundle} in {one.precision}" for one in common.values()})
        wanted = ref if precision == "auto" else f"{ref} in {precision}"
        raise RuntimeUnavailable(
            f"it serves {', '.join(served) or 'no version whole'}, not {wanted}; add that with: {_EXPORT}"
        )
    return max(fitting), common[max(fitting)]
