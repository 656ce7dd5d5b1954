"""OpenTelemetry, switched on by its own environment variables; without them nothing of it is loaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def is_wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment names a collector and does not switch traces off."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "otlp") == "none":
        return False
    return any(environment.get(name) for name in _ENDPOINTS)


def open_tracer(service: str) -> Tracer | None:
    """A tracer that exports by OTLP over HTTP as the OTEL_* variables say; None when they ask for none.

    `service`: the service name, where OTEL_SERVICE_NAME gives none. Spans that wait are sent when the process
    ends. A missing package is a warning: a platform may set the variables for everything that it runs.
    """
    if not is_wanted():
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as exc:
        log.warning("no traces: the package %s is missing; pip install 'maskbit-serve[tracing]'", exc.name)
        return None
    named = (
        SERVICE_NAME in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "") or "OTEL_SERVICE_NAME" in os.environ
    )
    provider = TracerProvider(resource=Resource.create({} if named else {SERVICE_NAME: service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("maskbit")
