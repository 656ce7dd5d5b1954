"""A gateway's spans with OpenTelemetry; imported only when traces are wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.gateway.spans import Headers, Spans

_W3C = TraceContextTextMapPropagator()
_CARRIED = (b"traceparent", b"tracestate")
_ATTRIBUTES = {
    "method": "http.request.method",
    "route": "http.route",
    "status": "http.response.status_code",
    "request_id": "maskbit.request_id",
    "tenant": "maskbit.tenant",
}


class OtelSpans(Spans):
    """Server spans named after method and route, and producer spans below them."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def request(self, headers: Headers, fields: dict[str, object]) -> Iterator[None]:
        """The server span of one request; a sampled one adds its trace id to `fields`."""
        carrier = {name.decode(): value.decode("latin-1") for name, value in headers if name in _CARRIED}
        parent = _W3C.extract(carrier)
        with self._tracer.start_as_current_span("HTTP", context=parent, kind=SpanKind.SERVER) as span:
            if span.is_recording():
                fields["trace_id"] = f"{span.get_span_context().trace_id:032x}"
            yield
            span.update_name(f"{fields['method']} {fields['route']}")
            for name, attribute in _ATTRIBUTES.items():
                if name in fields:
                    span.set_attribute(attribute, fields[name])  # type: ignore[arg-type]
            if int(str(fields["status"])) >= 500:
                span.set_status(StatusCode.ERROR)

    @contextmanager
    def submit(self, kind: str, job_id: str, images: int) -> Iterator[str]:
        """The producer span of one job, below that of its request."""
        attributes: dict[str, str | int] = {
            "messaging.system": "redis",
            "messaging.operation.type": "send",
            "messaging.message.id": job_id,
            "maskbit.images": images,
        }
        with self._tracer.start_as_current_span(
            f"queue {kind}", kind=SpanKind.PRODUCER, attributes=attributes
        ):
            carrier: dict[str, str] = {}
            _W3C.inject(carrier, context=trace.set_span_in_context(trace.get_current_span()))
            yield carrier.get("traceparent", "")
