"""One trace from HTTP to the steps, over real processes and a real OTLP receiver; and their JSON lines."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.jobs.job import ClaimedJob
from service.tracing import is_wanted
from service.worker.job_spans import JobSpans
from service.worker.task import Task
from tests.gateway_harness import until
from tests.service_fixtures import Running, serving

KEY = "maskbit_a-key-that-must-not-be-logged"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STEPS = 5


@dataclass
class Received:
    """One span as the collector got it."""

    service: str
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: list[str]


@dataclass
class Collector:
    """An OTLP/HTTP receiver."""

    spans: list[Received] = field(default_factory=list)
    port: int = 0

    def of(self, trace: str) -> dict[str, Received]:
        return {span.name: span for span in list(self.spans) if span.trace == trace}

    def take(self, body: bytes) -> None:
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _attributes(group.resource.attributes)["service.name"]
            self.spans += [_received(service, one) for scope in group.scope_spans for one in scope.spans]


def _received(service: str, span: Any) -> Received:
    return Received(
        service=service,
        name=span.name,
        kind=span.kind,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        events=[event.name for event in span.events],
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            collector.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.port = server.server_port
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Collector]]:
    """`maskbit serve` with keys, JSON logs and traces."""
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    with collecting() as collector:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "MASKBIT_API_KEYS": f"shop:{digest}",
        }
        folder = tmp_path_factory.mktemp("traced")
        with serving(folder, "--runtime", "noop", "--log-format", "json", **environment) as running:
            yield running, collector


def draw(running: Running, **headers: str) -> str:
    """Draw a picture; returns the job's id."""
    body = {"class_id": 1, "n": 2, "steps": STEPS}
    given = {"Authorization": f"Bearer {KEY}", **headers}
    reply = running.client.post("/generate", json=body, headers=given)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["id"])


def test_one_trace_leads_from_the_caller_through_the_queue_to_every_step(
    traced: tuple[Running, Collector],
) -> None:
    running, collector = traced
    job_id = draw(running, traceparent=f"00-{TRACE}-{PARENT}-01", **{"X-Request-ID": "mine"})
    names = {"POST /generate", "queue generate", "wait", "job generate", "draw", "decode", "finish"}
    until(lambda: set(collector.of(TRACE)) >= names)
    spans = collector.of(TRACE)
    assert set(spans) == names
    request, queued, job, drawn = (
        spans[name] for name in ("POST /generate", "queue generate", "job generate", "draw")
    )
    parents = {name: span.parent for name, span in spans.items()}
    assert parents == {
        "POST /generate": PARENT,
        "queue generate": request.id,
        "wait": queued.id,
        "job generate": queued.id,
        "draw": job.id,
        "decode": job.id,
        "finish": job.id,
    }
    services = {name: span.service for name, span in spans.items()}
    assert {services.pop("POST /generate"), services.pop("queue generate")} == {"maskbit-gateway"}
    assert set(services.values()) == {"maskbit-worker"}
    # SERVER, PRODUCER, CONSUMER, INTERNAL of the OTLP enumeration.
    assert (request.kind, queued.kind, job.kind, drawn.kind) == (2, 4, 5, 1)
    assert drawn.events == ["step"] * STEPS
    assert queued.attributes["messaging.message.id"] == job.attributes["messaging.message.id"] == job_id
    assert job.attributes["maskbit.outcome"] == "done"
    expected = {
        "http.request.method": "POST",
        "http.route": "/generate",
        "http.response.status_code": 200,
        "maskbit.request_id": "mine",
        "maskbit.tenant": "shop",
    }
    assert request.attributes == expected
    for span in spans.values():
        assert span.start_ns <= span.end_ns
    assert job.start_ns <= drawn.start_ns <= drawn.end_ns <= spans["decode"].start_ns + 1_000_000
    assert spans["wait"].end_ns <= job.start_ns + 1_000_000


def test_a_request_without_a_caller_begins_a_trace_and_an_unsampled_one_leaves_none(
    traced: tuple[Running, Collector],
) -> None:
    running, collector = traced
    unsampled = "1" * 32
    draw(running, traceparent=f"00-{unsampled}-{PARENT}-00")
    draw(running, traceparent="nonsense", **{"X-Request-ID": "fresh"})

    def fresh() -> list[Received]:
        return [span for span in collector.spans if span.attributes.get("maskbit.request_id") == "fresh"]

    (request,) = until(fresh)
    until(lambda: "finish" in collector.of(request.trace))
    assert request.parent == ""
    assert not collector.of(unsampled)


def test_every_line_of_the_service_is_one_json_object_and_none_holds_a_key(
    traced: tuple[Running, Collector],
) -> None:
    running, _ = traced
    job_id = draw(running, **{"X-Request-ID": "logged"})
    running.client.get("/generate%0d%0a%1b[31m?x=y", headers={"X-API-Key": KEY + "wrong"})
    text = until(lambda: (t := running.log.read_text()) and "%1b" in t and t)
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        assert list(line)[:4] == ["ts", "level", "logger", "message"]
        assert line["ts"].endswith("Z")
    assert KEY not in text
    assert {"uvicorn.error", "maskbit", "service.gateway.middleware"} <= {line["logger"] for line in lines}
    (line,) = (line for line in lines if line.get("request_id") == "logged")
    assert line["jobs"] == [job_id]
    assert (line["method"], line["route"], line["status"], line["tenant"]) == (
        "POST",
        "/generate",
        200,
        "shop",
    )
    assert line["duration_ms"] > 0
    assert len(line["trace_id"]) == 32


def claimed(trace: str = "") -> ClaimedJob:
    return ClaimedJob(
        id="a",
        kind="generate",
        queue="q0",
        entry_id="1-0",
        attempt=1,
        solo=False,
        payload=b"",
        rows=1,
        deadline_ms=0,
        deadline_s=0.0,
        wants_events=False,
        trace=trace,
        age_ms=250,
    )


def test_the_wait_is_as_long_as_redis_says_and_a_failed_job_is_an_error() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    observer = JobSpans(provider.get_tracer("test"))
    job, task = claimed(), Task("a", request=None)  # type: ignore[arg-type]
    observer.claimed(job)
    observer.worked("step", [task, Task("b", request=None)], 4, 10, 20)  # type: ignore[arg-type]
    observer.worked("step", [task], 3, 30, 50)
    observer.ended(job, "failed")
    observer.ended(job, "dropped")
    observer.worked("step", [task], 3, 60, 70)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"wait", "draw", "job generate"}
    wait, drawn = spans["wait"], spans["draw"]
    assert wait.end_time - wait.start_time == 250_000_000  # type: ignore[operator]
    assert (drawn.start_time, drawn.end_time) == (10, 50)
    events = [(event.timestamp, dict(event.attributes or {})) for event in drawn.events]
    assert events == [
        (20, {"maskbit.rows": 4, "maskbit.ms": 1e-5}),
        (50, {"maskbit.rows": 3, "maskbit.ms": 2e-5}),
    ]
    assert spans["job generate"].status.status_code.name == "ERROR"


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_the_standard_variables_switch_traces_on(environment: dict[str, str], wanted: bool) -> None:
    assert is_wanted(environment) is wanted


_LOADED = """
import sys
import service.gateway.app, service.worker.process
from service.gateway.spans import open_spans
from service.tracing import open_tracer
assert open_tracer("x") is None and type(open_spans()).__name__ == "Spans"
# FastAPI and redis-py load other parts by themselves.
ours = ("opentelemetry.sdk.trace", "opentelemetry.exporter", "service.gateway.otel", "service.worker.job_sp")
print([name for name in sys.modules if name.startswith(ours)])
"""


def load(before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", before + _LOADED],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        env={"PATH": os.environ["PATH"], **environment},
    )


def test_without_the_variables_the_sdk_is_not_loaded() -> None:
    assert load().stdout.strip() == "[]"


def test_without_the_packages_the_service_runs_and_says_what_is_missing() -> None:
    without = "import sys; sys.modules['opentelemetry.exporter'] = None\n"
    done = load(without, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert "pip install 'maskbit-serve[tracing]'" in done.stderr
